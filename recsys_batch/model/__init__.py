"""The reference model: two towers that retrieve and a ranker that re-ranks. The only package that imports torch.

training             train_bundle: from tables to a bundle, with its metrics and the champion comparison
training_cost        memory and minutes that a training will take, stated before it starts
training_data        positives per user as arrays
content_tokens       content tokens of items and users as ragged codes
validation_split     what a model learns from and what it is measured on
warm_start           closed-form initial towers: EASE-like ridge regression, exact or low-rank
tower_parameters     weights of the towers in training
tower_training       hyperparameter search and softmax training of the towers, stopped early by held-out NDCG
ranking_samples      retrieved candidate lists with labels, from which the ranker learns
ranker_training      train the ranker and select its gate
challenger_metrics   popularity and champion baselines on held-out positives
towers, ranker       inference from a bundle
onnx_export          the ranker as an ONNX model for the online server
trial_stages         its stages on made-up users, for a plan to time
"""
