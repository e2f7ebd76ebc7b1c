"""The stream: lists of users who did something, refreshed between two nights by the model and the index of the published run.

- runner: the loop of micro-batches. run_follower: the run whose lists are refreshed.
- refresher: one micro-batch, from appended events to rows of topk_live.
- kafka_source: events of a topic, appended to interactions. kafka_messages: its messages as valid and as rejected rows.
- item_changes: what the items table says now. event_store: events since the night, by user. live_table: commits to topk_live.
"""
