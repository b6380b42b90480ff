"""The processors that come with streammon: their tasks, and where they read and write.

They are found as yours are, by the entry points of `streammon_processors.registry`.
"""

from __future__ import annotations

from pathlib import Path

from streammon.config import Settings
from streammon.models import load_models
from streammon.outcomes import OUTCOMES, elements, outcome_time
from streammon.profiles import PROFILES, REFERENCES
from streammon.remediation import REMEDIATIONS, REMEDIES, load_policies
from streammon.topics import LOOPS
from streammon_processors.detectors.lengths import step_s
from streammon_processors.drift import DriftTask, each_test, test_time
from streammon_processors.join import JoinTask
from streammon_processors.join.models import KnownModels
from streammon_processors.join.task import JOIN
from streammon_processors.notifier import DecideTask, GatherTask, Plan, load_plan
from streammon_processors.notifier.gather import page_time
from streammon_processors.profiles import ProfileTask
from streammon_processors.quality import QualityTask
from streammon_processors.remediation import GatherRemediesTask, RemedyTask
from streammon_processors.remediation.gather import inputs, remedy_time
from streammon_processors.remediation.retraining import change_time
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rules, RulesTask, load_rules, load_slos
from streammon_processors.rules.group import GroupTask
from streammon_processors.rules.groups import GROUPED, REGROUPED, refuse_base_windows
from streammon_processors.rules.regroup import RegroupTask
from streammon_processors.shapes import Asked, plan, tumbling
from streammon_processors.slos import SloTask
from streammon_processors.task import Output, Processor, time_field
from streammon_processors.windows import WindowTask, sources

ROLLUPS_TICK_S = 5.0
"""Rollups have no use for four ticks a second: an hour's window is open for an hour, and their patience is 10 s."""
PROFILES_TICK_S = 5.0
"""Profiles are of minutes: that the last one of a model comes seconds later concerns nobody."""
REMEDY_TICK_S = 5.0
"""How exact the time is that a person has for an approval, while somebody is waited for."""
RULES_TICK_S = 5.0
"""How exact the silence of a series is. On `drift` and `runs`, hardly anything is there but ticks."""
DETECTORS_TICK_S = 10.0
"""How exact the patience of `streammon_processors.detectors.steps` is."""
QUALITY_TICK_S = 15.0
"""How exact the end of windows is where neither labels nor predictions come any more, for as long as labels may."""
GROUP_TICK_S = 2.0
"""How exact the patience of `streammon_processors.rules.group` is."""
DRIFT_TICK_S = 30.0
"""How exact the patience of `streammon_processors.drift.task` is, which is minutes."""
JOIN_TICK_S = 30.0
"""How exact the ends of cohorts are, where no prediction comes; they are minutes long, and labels may wait for days."""
NOTIFY_TICK_S = 0.5
"""How exact ``group_wait`` and the like are, while there is something to wait for."""


def windows_processor(settings: Settings) -> Processor:
    """Events to windows."""
    inputs = tuple(sources(settings.windows))
    outputs = (Output("windows", time_field("start_unix_s", lacking="of_s")),)
    return Processor("windows", inputs, lambda partition: WindowTask(partition, settings.windows), outputs)


def profiles_processor(settings: Settings) -> Processor:
    """Predictions to profiles, and to references of models that have none."""
    file, windows = settings.models.file, settings.windows
    models = load_models(file)
    return Processor(
        "profiles",
        ("inference",),
        lambda partition: ProfileTask(partition, windows, models),
        (Output(PROFILES, time_field("start_unix_s")), Output(REFERENCES, time_field("since_unix_s"), compact=True)),
        idle_tick_s=max(windows.idle_tick_s, PROFILES_TICK_S),
        files=_files(file),
    )


def rollups_processor(settings: Settings) -> Processor:
    """Windows to longer windows: those of the configuration, and those that its rules ask for."""
    steps = Asked(tumbling(step_s(settings.windows.size_s)), "inference", "detectors")
    asked = (*_rules(settings).asked, steps)
    RollupTask(0, settings.windows, asked)  # what cannot be made is found before anything is started
    outputs = (Output("windows", time_field("start_unix_s", having="of_s")),)
    tick_s = max(settings.windows.idle_tick_s, ROLLUPS_TICK_S)
    return Processor(
        "rollups",
        ("windows",),
        lambda partition: RollupTask(partition, settings.windows, asked),
        outputs,
        idle_tick_s=tick_s,
        files=settings.rules.files,
    )


def rules_processor(settings: Settings) -> Processor:
    """Windows and results to alerts; and what people say of them."""
    rules, windows = _rules(settings), settings.windows
    outputs = (Output("alerts", time_field("updated_unix_s"), compact=True),)
    inputs = (*rules.topics, "commands")
    return Processor(
        "rules",
        inputs,
        lambda partition: RulesTask(rules, partition, base_s=windows.size_s, max_future_s=windows.max_future_s),
        outputs,
        idle_tick_s=max(windows.idle_tick_s, RULES_TICK_S),
        files=settings.rules.files,
    )


def slos_processor(settings: Settings) -> Processor:
    """Windows to what is left of error budgets."""
    _rules(settings)  # which finds what is wrong with them
    slos, base_s = load_slos(settings.rules.files), settings.windows.size_s
    outputs = (Output("slos", time_field("end_unix_s"), compact=True),)
    return Processor(
        "slos",
        ("windows",),
        lambda partition: SloTask(slos, partition, base_s=base_s),
        outputs,
        files=settings.rules.files,
    )


def quality_processor(settings: Settings) -> Processor:
    """Predictions and their labels to how good they were."""
    file, max_future_s = settings.models.file, settings.windows.max_future_s
    models = load_models(file)
    return Processor(
        "quality",
        (OUTCOMES,),
        lambda partition: QualityTask(models, partition, max_future_s=max_future_s),
        (Output("quality", time_field("start_unix_s")),),
        idle_tick_s=QUALITY_TICK_S,
        files=_files(file),
    )


def regroup_processor(settings: Settings) -> Processor:
    """Windows to the partitions of the groups that rules ask for; nothing to do where none does."""
    groupings = _rules(settings).groupings
    outputs = (Output(REGROUPED, time_field("start_unix_s"), by_key=True),)
    return Processor(
        "regroup",
        ("windows",) if groupings else (),
        lambda partition: RegroupTask(groupings, partition),
        outputs,
        files=settings.rules.files,
    )


def group_processor(settings: Settings) -> Processor:
    """The windows of a group to one; nothing to do where no rule asks for groups."""
    groupings = _rules(settings).groupings
    outputs = (Output(GROUPED, time_field("start_unix_s")),)
    return Processor(
        "group",
        (REGROUPED,) if groupings else (),
        lambda partition: GroupTask(groupings, partition),
        outputs,
        idle_tick_s=GROUP_TICK_S,
        files=settings.rules.files,
    )


def detectors_processor(settings: Settings) -> Processor:
    """Windows and qualities, and events where a policy asks for it, to what River's detectors say of them."""
    # River brings SciPy, and half a second of imports: for whoever runs it.
    from streammon_processors.detectors.task import DetectorsTask
    from streammon_processors.detectors.watching import sees_events

    file, size_s = settings.models.file, step_s(settings.windows.size_s)
    models = load_models(file)
    per_event = sees_events(models)
    return Processor(
        "detectors",
        ("windows", "quality", *(["inference"] if per_event else [])),
        lambda partition: DetectorsTask(models, partition, step_s=size_s, per_event=per_event),
        (Output("drift", time_field("end_unix_s", lacking="weight")),),
        idle_tick_s=max(settings.windows.idle_tick_s, DETECTORS_TICK_S),
        files=_files(file),
    )


def gather_processor(settings: Settings) -> Processor:
    """Alerts, commands and likely causes of all partitions to the one order in which the notifier decides."""
    outputs = (Output("pages", page_time, partition=0),)
    return Processor("gather", ("alerts", "commands", "evidence"), GatherTask, outputs)


def notify_processor(settings: Settings, plan: Plan | None = None) -> Processor:
    """Whom to tell what: from pages to notifications, by ``plan``, or else by what the notifier's file says now."""
    plan = plan or load_plan(settings.notify.file)
    outputs = (Output("notifications", time_field("created_unix_s")),)
    return Processor("notify", ("pages",), lambda partition: DecideTask(plan, partition), outputs, NOTIFY_TICK_S)


def remedies_processor(settings: Settings) -> Processor:
    """What remediation is decided by, from all partitions to the one order in which it is."""
    file, windows = settings.remediation.file, settings.windows
    policies = load_policies(file)
    shape = next((level.shape.name for level in plan(windows.size_s, windows.rollups_s)), "")
    return Processor(
        "remedies",
        inputs(policies),
        lambda partition: GatherRemediesTask(partition, policies, shape),
        (Output(REMEDIES, remedy_time, partition=0),),
        files=_files(file),
    )


def remedy_processor(settings: Settings) -> Processor:
    """What is done about alerts, and what becomes of models that are trained anew."""
    file = settings.remediation.file
    policies = load_policies(file)
    return Processor(
        "remedy",
        (REMEDIES,),
        lambda partition: RemedyTask(policies, partition),
        (
            Output(REMEDIATIONS, time_field("time_unix_s")),
            Output(LOOPS, time_field("time_unix_s"), compact=True, partition=0),
            Output("changes", change_time, by_key=True),
        ),
        idle_tick_s=REMEDY_TICK_S,
        files=_files(file),
    )


def drift_processor(settings: Settings) -> Processor:
    """Profiles to what has drifted."""
    file = settings.models.file
    models = load_models(file)
    outputs = (Output("drift", test_time, elements=each_test),)
    return Processor(
        "drift",
        (PROFILES, REFERENCES),
        lambda partition: DriftTask(models, partition),
        outputs,
        idle_tick_s=DRIFT_TICK_S,
        files=_files(file),
    )


def join_processor(settings: Settings) -> Processor:
    """Predictions and labels to outcomes."""
    file = settings.models.file
    models = load_models(file)
    return Processor(
        JOIN,
        ("inference", "labels"),
        lambda partition: JoinTask(partition, models, settings),
        (Output(OUTCOMES, outcome_time, elements=elements),),
        idle_tick_s=JOIN_TICK_S,
        files=_files(file),
        journal_s=KnownModels(models).longest_s,
    )


def _rules(settings: Settings) -> Rules:
    rules = load_rules(settings.rules.files, settings.windows.inference_distributions)
    refuse_base_windows(rules.groupings, settings.windows.size_s)
    return rules


def _files(file: Path | None) -> tuple[Path, ...]:
    """What a processor is made anew from: a file that may be given."""
    return () if file is None else (file,)
