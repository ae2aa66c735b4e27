"""The configuration: pydantic models read from YAML, checked whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clsearch.addresses import ANONYMOUS, shows_token
from clsearch.axes import Grid
from clsearch.errors import InputError
from clsearch.messages import NAME, NAME_IN_WORDS, from_pydantic
from clsearch.options import Strict
from clsearch.redaction import holds_secret
from clsearch.yaml_reader import read_yaml


class Plugin(BaseModel):
    """A plug-in by name, its options beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="Name of the plug-in.")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def checked_options(kind: type[Any], options: Mapping[str, Any], field: str) -> BaseModel:
    """The checked options of a plug-in; raises `InputError` under `field`."""
    model: type[BaseModel] = kind.Options
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise from_pydantic(error, model, field) from error


Margin = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class FineTuneConfig(Strict):
    """Fine-tuning of the selected trial after pruning (CLNP §2.2, §3.2): only what survives of the
    task's own weights moves."""

    epochs: int = Field(20, ge=1, description="Passes over the training samples in a round.")
    lr: float | None = Field(
        None, gt=0, description="Learning rate; default that of the selected trial."
    )
    l1: float | None = Field(
        None,
        ge=0,
        description="Strength of the L1 norm; default that of the selected trial. Strengths that a"
        " grid gives to single layers stay.",
    )
    rounds: int = Field(
        1,
        ge=1,
        le=100,
        description="Rounds of pruning and fine-tuning, at most. Each prunes as far as the margin"
        " allows; they end where that frees no more neurons.",
    )
    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of free neurons at which rounds end; default none.",
    )


class MethodConfig(Strict):
    """One method to compare."""

    name: str = Field(description="Name of the method.")
    label: str = Field(
        "", description="Name in tables and of the chain; default the method's name. Unique."
    )
    options: dict[str, Any] = Field({}, description="Options of the method.")
    regularizers: list[Plugin] = Field(
        [], description="Regularisers added to its loss, each by name with its options."
    )
    grid: Grid = Field({}, description="Axes of this method's grid, over those of `search.grid`.")
    margin: Margin | None = Field(
        None, description="Its own margin; default that of `selection.margin`."
    )
    fine_tune: FineTuneConfig | None = Field(
        None,
        description="Fine-tune the selected trial after pruning, for a method that prunes; default"
        " not.",
    )

    @property
    def chain_name(self) -> str:
        return self.label or self.name


class AugmentConfig(Strict):
    """Random changes of the training images, drawn anew in every epoch by each member itself."""

    flip: bool = Field(False, description="Flip an image left to right with probability ½.")
    crop: int = Field(
        0,
        ge=0,
        description="Shift an image by up to so many pixels up or down and left or right; what"
        " comes in from beyond its edge is 0, as pixels are stored.",
    )

    @model_validator(mode="after")
    def _some(self) -> AugmentConfig:
        if not self.flip and not self.crop:
            step = "Or leave `augment` out."
            raise InputError("training.augment", "nothing", "flip, crop or both", step)
        return self


class TrainingConfig(Strict):
    """How every trial is trained."""

    epochs: int = Field(
        10, ge=1, le=10**6, description="Passes over the training samples, at most."
    )
    batch_size: int = Field(64, ge=1, le=2**31 - 1, description="Samples in a step.")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="Update rule.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of `sgd`.")
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop a member after so many epochs without a better validation accuracy and"
        " keep its best weights; null trains all epochs and keeps the last.",
    )
    precision: Literal["fp32"] = Field("fp32", description="Arithmetic of training.")
    augment: AugmentConfig | None = Field(
        None,
        description="Random changes of the training images, drawn anew in every epoch by each"
        " member itself; default none. Validation, scans and importance see images as they are."
        " Not for permuted pixels, nor for methods that keep answers to stored images (`lwf`,"
        " `ebll`).",
    )

    @model_validator(mode="after")
    def _momentum(self) -> TrainingConfig:
        if self.momentum and self.optimizer != "sgd":
            step = "Leave it out, or take `optimizer: sgd`."
            raise InputError("training.momentum", self.momentum, "0 with adam", step)
        return self


class SearchConfig(Strict):
    """What is searched, and on which tasks."""

    protocol: Literal["current_task", "first_task"] = Field(
        "current_task",
        description="`current_task` searches the grid at every task; `first_task` at task 1 only"
        " and keeps the hyperparameters selected there (CLNP §3.1).",
    )
    grid: Grid = Field({}, description="Axes shared by all methods that know the hyperparameter.")


class SelectionConfig(Strict):
    """The CLNP selector: the sparsest model within the margin."""

    margin: Margin = Field(
        1.0,
        description="Percentage points of validation accuracy that may be given up for capacity.",
    )
    thresholds: int = Field(
        50, ge=1, le=10_000, description="Activity thresholds scanned per trial, at most."
    )
    per_layer: bool = Field(
        False,
        description="Prune each unit layer at a threshold of its own: from the one found for the"
        " network, layer by layer as far as the margin allows.",
    )


class ResourcesConfig(Strict):
    """Where trials run. Nothing here changes a trial's key; a GPU rounds differently."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` takes a GPU where the cluster has one."
    )
    gpus: float = Field(
        1.0, gt=0, le=1, description="Share of a GPU that one pack takes, on `cuda`."
    )
    accelerator: str | None = Field(
        None,
        description="Type of GPU that all trials run on, as Ray names it (`A100`), so that they"
        " round alike; default any. The smallest GPU bounds the size of packs.",
    )
    workers: int | None = Field(
        None, ge=1, description="Worker processes of a local run; default one for each core."
    )
    pack: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Members trained together, at most; `auto` fits layers and device."
    )
    storage: str | None = Field(
        None,
        description="Where journal and checkpoints are kept, as `s3://BUCKET/PATH`, `gs://…` or"
        " `file:///PATH`; default the output folder. Every worker has to reach it, with credentials"
        " of its host.",
    )

    @model_validator(mode="after")
    def _checked(self) -> ResourcesConfig:
        if self.accelerator is not None and self.device == "cpu":
            step = "Trials on a CPU take no GPU of any type."
            raise InputError("accelerator", self.accelerator, "null where `device` is cpu", step)
        storage = self.storage
        if storage is not None and holds_secret(storage.replace(ANONYMOUS, "gs://", 1)):
            step = "Credentials come from the environment: AWS_ACCESS_KEY_ID, …"
            raise InputError("storage", storage, "an address without secrets", step)
        if storage is not None and shows_token(storage):
            allowed = "gs://BUCKET/PATH; another server than Google's with anonymous@ before BUCKET"
            step = "`endpoint_override` and `scheme` would send Google's token elsewhere."
            raise InputError("storage", storage, allowed, step)
        addresses = r"(s3|gs)://[^/].*|file:///[^?#]*"
        if storage is not None and (
            not re.fullmatch(addresses, storage) or ".." in unquote(storage).split("/")
        ):
            step = "In a path, ? is written %3F, # is %23, and .. may not stand."
            allowed = "s3://BUCKET/PATH, gs://BUCKET/PATH, file:///PATH"
            raise InputError("storage", storage, allowed, step)
        return self


class TrackingConfig(Strict):
    """Where MLflow keeps the audit trail."""

    uri: str | None = Field(
        None, description="MLflow server; default a database in the output folder."
    )
    system_metrics: bool = Field(
        False,
        description="Sample the load of the driver's machine (CPU, memory, disk, network, GPU) into"
        " the run of the search.",
    )


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Config(Strict):
    """A whole search: tasks, methods, grid."""

    name: str = Field(
        "experiment",
        pattern=NAME,
        description="Name of the experiment; also names its randomness and its folder.",
    )
    scenario: Plugin = Field(description="The sequence of tasks: name and options.")
    model: Plugin = Field(
        Plugin(name="mlp"), description="The backbone: name and options.", validate_default=True
    )
    methods: list[MethodConfig] = Field(min_length=1, description="The methods to compare.")
    seeds: list[Seed] = Field(
        [0], min_length=1, description="Repeats: one chain for each method and seed."
    )
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    selection: SelectionConfig = SelectionConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _unique(self) -> Config:
        labels = [m.chain_name for m in self.methods]
        for i, label in enumerate(labels):
            field = f"methods[{i}].{'label' if self.methods[i].label else 'name'}"
            if not re.fullmatch(NAME, label):
                raise InputError(field, label, NAME_IN_WORDS)
            if label in labels[:i]:
                step = "Give one of them another `label`."
                raise InputError(field, label, "each method once, or under another label", step)
        for i, seed in enumerate(self.seeds):
            if seed in self.seeds[:i]:
                raise InputError(f"seeds[{i}]", seed, "each seed once")
        return self

    def margin_of(self, method: MethodConfig) -> float:
        """The margin that a method is selected with, in percentage points."""
        return self.selection.margin if method.margin is None else method.margin


def load_config(source: Path | str | Mapping[str, Any]) -> Config:
    """Reads and checks a YAML file, or a mapping of the same keys; raises `InputError` for the
    first thing that is wrong."""
    if isinstance(source, Mapping):
        return parse_config(source)
    data = read_yaml(Path(source), "config")
    if not isinstance(data, dict):
        raise InputError("config", str(source), "a YAML mapping with scenario and methods")
    return parse_config(data)


def parse_config(data: Mapping[str, Any]) -> Config:
    """A mapping to a checked `Config`; raises `InputError`."""
    try:
        return Config.model_validate(dict(data))
    except ValidationError as error:
        raise from_pydantic(error, Config) from error
