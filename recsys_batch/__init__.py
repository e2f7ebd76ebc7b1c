"""Nightly batch scoring on Spark with a small online ranker: see README.md, and docs/architecture.md for the rooms.

From the top, each importing only what is below it:

    cli, commands                     the command line
    plan                              which surface is served how, from what was measured
    erasure                           a user, out of everything
    night, online, report, digest     one run; the ranker per request; a run as a page; items for e-mails
    stream, model_servers             lists refreshed between two nights; the ranker for other servers
    spark                             session, tables, ingest, what runs on executors
    sources                           source files of any format as Arrow rows
    model, ann                        the reference model; nearest neighbours
    evaluation, read, dataset         metrics and differences; readers without a JVM; catalogue, histories, popularity
    registry, ranking                 bundles and MLflow; features, top-K, business rules
    tables, storage                   the run manifest and a run's rows; files, object stores, locks
    config, ids, schemas, errors, logs
"""

__version__ = "0.1.0"
