"""What the commands take: a right line of each, and what kind of text each parameter is."""

from __future__ import annotations

from enum import Enum

# A command's shortest right line but for options; FILE stands for a readable file.
VALID: dict[str, tuple[str, ...]] = {
    "": ("runs", "list", "--target", "127.0.0.1:1"),
    "quickstart": (),
    "up": (),
    "down": (),
    "status": (),
    "solve": ("1 + 1?",),
    "eval": ("--dataset", "FILE"),
    "train": ("--config", "FILE"),
    "trace": ("aaaaaa11",),
    "runs": (),
    "runs list": (),
    "runs show": ("r-1",),
    "runs diff": ("r-1", "r-2"),
    "runs fork": ("r-1", "--step", "1"),
    "runs pause": ("r-1",),
    "runs resume": ("r-1",),
    "runs cancel": ("r-1",),
    "config": ("--config", "FILE"),
    "doctor": (),
    "k8s render": ("local",),
}


class Kind(Enum):
    """What a parameter that takes text is."""

    STATE = "a state folder"
    YAML = "a YAML file that this side reads"
    FILE = "a file that is sent as it is"
    TARGET = "host:port of an orchestrator"
    ID = "an id of the orchestrator's"
    ID_OPTION = "such an id that a command can do without"
    WHOM = "whom to evaluate"
    VOTES = "a number, or a job whose tokens are to be equalled"
    QUESTION = "free text"
    NAME = "a name that the orchestrator knows"
    EXAMINED_STATE = "a state folder that is looked at"
    EXAMINED_PROFILE = "a profile that is looked at"
    NEW_ID = "an id that the orchestrator is to take"
    LATE_ID = "such an id, looked at once there is a run to fork, or an engine to run on"
    SECRET = "a file with a token, a key or a certificate"
    SERVER_NAME = "a name in a certificate"
    CLUSTER = "where in the kubeconfig; how that can be wrong, tests/client/kubernetes has"
    OVERLAY = "an overlay, or a folder"
    CHECKOUT = "a folder with overlays"


# By command and parameter, or by parameter alone.
KINDS: dict[str, Kind] = {
    "doctor state": Kind.EXAMINED_STATE,
    "doctor profile": Kind.EXAMINED_PROFILE,
    "state": Kind.STATE,
    "profile": Kind.YAML,
    "target": Kind.TARGET,
    "train config": Kind.FILE,
    "config config_file": Kind.FILE,
    "eval dataset": Kind.FILE,
    "eval script": Kind.FILE,
    "eval dataset_format": Kind.NAME,
    "eval of": Kind.WHOM,
    "eval before": Kind.WHOM,
    "eval votes": Kind.VOTES,
    "eval job_id": Kind.NEW_ID,
    "eval retry_faults": Kind.LATE_ID,
    "eval cancel": Kind.ID_OPTION,
    "eval items": Kind.ID_OPTION,
    "train resume": Kind.ID,
    "train run_id": Kind.NEW_ID,
    "trace execution": Kind.ID,
    "run": Kind.ID,
    "runs diff first": Kind.ID,
    "runs diff second": Kind.ID,
    "runs fork config": Kind.FILE,
    "runs fork run_id": Kind.LATE_ID,
    "token_file": Kind.SECRET,
    "tls_ca": Kind.SECRET,
    "tls_cert": Kind.SECRET,
    "tls_key": Kind.SECRET,
    "tls_server_name": Kind.SERVER_NAME,
    "context": Kind.CLUSTER,
    "namespace": Kind.CLUSTER,
    "k8s render overlay": Kind.OVERLAY,
    "k8s render checkout": Kind.CHECKOUT,
    "solve question": Kind.QUESTION,
}
