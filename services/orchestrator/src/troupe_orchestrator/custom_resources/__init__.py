"""TrainingRun and EvalJob, objects of the Kubernetes API that ask for runs and eval jobs: a front door, and no more.

The object is a request: its uid is the id of the run or job, so that asking again makes nothing twice. The row in SQL is the
run. What an object wants is carried out as a call would be, its status is written from SQL and never read as a fact about
the run, and nothing of a step waits for the API server.

- `resources`      the objects, as they are listed and watched
- `messages`       specs as messages of the contracts, and those as status
- `decisions`      what to do, from what is wanted and what is: a table
- `backing`        what stands behind the objects of one kind
- `training_runs`  runs behind TrainingRuns
- `eval_jobs`      jobs behind EvalJobs
- `projection`     the status of an object
- `agenda`         which object is to be looked at when
- `controller`     puts these together, with the threads that ask the API server
- `steering`       what calls may not do with a run that an object steers

No finalizer: an object that is deleted is noticed by its watch, or by the next list, which lacks what SQL has. So deleting
an object, or its namespace, waits for nobody, and nothing is stuck where no orchestrator runs.
"""
