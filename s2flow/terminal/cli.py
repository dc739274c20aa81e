"""Command line around Hydra: prompts are passed verbatim, errors are printed as one line."""

import contextlib
import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from s2flow.errors import WANTED, UserError, printable
from s2flow.methods import by_parameter
from s2flow.process.ranks import rank
from s2flow.process.stopping import EX_TEMPFAIL, Preempted
from s2flow.recipe import CONF
from s2flow.recipe.schema import TEXTS, Config, ScoreConf

HYDRA_LITERALS = ("null", "true", "false", "nan", "inf")  # that Hydra does not parse as names
FOLDERS = ("runs_dir", "lr_cache_dir")  # of a sweep: ${...} in them is OmegaConf's
RUN_ID_KEYS = ("runs", "reproduce", "scorer.fidelity.reference")
RUN_ID = r"(?<![\w/.])[0-9a-f]{10}(/[0-9a-f]{16})?(?![\w/.])"  # optionally with a clip's key
LEADING_FLAGS = ("-m", "--multirun")  # argparse refuses overrides on both sides of them
NO_PLUGIN = (
    'hydra/launcher={0} needs a plugin that is not installed; type pip install "s2flow[cluster]"'
)
WHAT_TO_TYPE = {  # in a message of Hydra -> what is printed instead, with its groups
    r"\AMissing mandatory value: (\S+)": "{0} is not set; type {0}=...",
    r"\AAmbiguous value for argument '(([^=]+)=(.*))'\n": "{0} holds several values; "
    "to sweep over them type {program} -m {0}, for a list type {1}=[{2}]",
    r"In 'hydra/launcher/(\w+)': Could not": NO_PLUGIN,
    r"Could not find 'hydra/launcher/(joblib|ray|submitit_slurm|submitit_local)'": NO_PLUGIN,
    r"Could not load '([^/']+)/([^']+)'": "{0}={1} is unknown; {program} --help lists the choices",
    r"Could not find '((?:hydra/)?[^/']+)/([^']+)'": "{0}={1} is unknown; type one of {0}={options}",
}


def literal(argument: str) -> str:
    """An argument quoted so that Hydra's grammar passes free text or a run id verbatim.

    Unquoted, a run id such as 12345e6789 is a number. Everything after the `=` of a key in TEXTS is
    text: commas, quotes, `=`, `${`, newlines, emoji; nothing is interpolated or split into a sweep;
    one pair of quotes around it is taken off. `prompt=null` clears a prompt. Other arguments are
    returned unchanged. (`prompt=???` is OmegaConf's mark of a missing value, and refused.)
    """
    key, equals, text = argument.partition("=")
    if key in RUN_ID_KEYS and equals and text != "null":
        return f"{key}={re.sub(RUN_ID, lambda m: repr(m[0]), text)}"
    if key.lstrip("+") not in TEXTS or not equals or text == "null":
        return argument
    return f"{key}={_quoted(_unquoted(text), key in FOLDERS)}"


def _quoted(text: str, interpolated: bool) -> str:
    """A text in single quotes of Hydra's grammar."""
    # Inside Hydra's single quotes a backslash is special only before a quote or at the end, and
    # OmegaConf resolves ${ unless a backslash stands before it.
    if not interpolated:
        text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text)
    text = re.sub(r"(\\+)\Z", lambda m: m[1] * 2, text)
    return f"'{text}'"


def _unquoted(text: str) -> str:
    """The text without one pair of quotes around all of it, Hydra's quoting; see `typed`.

    A pair is around all of it if no such quote stands within, or a second pair does.
    """
    quote, inner = text[:1], text[1:-1]
    if len(text) < 2 or quote not in "'\"" or text[-1] != quote:
        return text
    if inner[:1] == quote == inner[-1:]:
        return inner
    if re.search(rf"(?<!\\){quote}", inner):
        return text
    return inner.replace(f"\\{quote}", quote)


def typed(key: str, value: str | None) -> str:
    """What to type for a text key to have this value."""
    if value is None:
        return f"{key}=null"
    if value == "null":
        return f"{key}='null'"
    quote = value[0] if _unquoted(value) != value else ""
    return f"{key}={quote}{value}{quote}"


def check_choice(argument: str) -> None:
    """Raises UserError for a config group whose value is no name, such as method=0 or windows=[1].

    Hydra ends in a traceback for these. Unknown names are left to Hydra.
    """
    key, equals, text = argument.partition("=")
    folder = CONF / key
    if not equals or not key.isalpha() or not folder.is_dir():
        return
    if "(" in text or text == "[]" or (key, text) == ("experiment", "null"):  # choice(a,b)
        return
    names = text[1:-1] if text[:1] + text[-1:] == "[]" else text
    for name in map(str.strip, names.split(",")):
        if name in HYDRA_LITERALS or not re.fullmatch(r"[A-Za-z_][\w./-]*", name.strip("'\"")):
            choices = "|".join(sorted(p.stem for p in folder.glob("*.yaml")))
            raise UserError(f"{key}={text} is no name; type one of {key}={choices}")


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Print a job's user error in the job: of a sweep, Hydra raises only the first one."""
    try:
        yield
    except UserError as error:
        if getattr(error, "reported", False):  # by another process
            raise
        _print_error(error)
        error.reported = True
        raise


class _FilteredStderr:
    """stderr without the line that Hydra prints before every exception of a job."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write all other text."""
        echo = text.startswith("Error executing job with overrides:")
        return len(text) if echo else self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Quote free text before Hydra parses it; print user errors as one line, exit code 2.

    Exit code 75 after a signal that stops a run (`s2flow.process.stopping`), 130 after Ctrl-C.
    HYDRA_FULL_ERROR=1 shows tracebacks instead.
    """
    printable()
    show_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that exceptions reach the handlers below
    overrides = sorted(sys.argv[1:], key=lambda override: override not in LEADING_FLAGS)
    if program().endswith("score"):  # where `prompts` is a file, in run.py a group of conf/
        files = [w.removeprefix("prompts=") for w in overrides]
        pairs = zip(overrides, files, strict=True)
        overrides = [w if w == f else f"prompts.file={f}" for w, f in pairs]
    sys.argv[1:] = [literal(a) for a in overrides]
    if not show_tracebacks:
        sys.stderr = _FilteredStderr(sys.stderr)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        for override in overrides:
            check_choice(override)
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if show_tracebacks:
            raise
        if not getattr(error, "reported", False):
            _print_error(error)
        sys.exit(2)
    except Preempted as stop:
        print(_stop_message(stop), file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    except Exception as error:
        launchers = ("joblib.", "submitit.", "ray.")
        if show_tracebacks or not type(error).__module__.startswith(launchers):
            raise
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        print(
            f"error: a job of the sweep died ({reason}); what is recorded stays, and the same "
            "command goes on from here",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _stop_message(stop: Preempted) -> str:
    names = ", ".join(json.dumps(p, ensure_ascii=False) for p in stop.dropped)
    dropped = f"dropped {names}, which was not complete" if names else "no clip was in flight"
    if stop.at_once and not names:  # a signal without a job at work, or a second one
        dropped = "at once, with any clip in flight"
    return f"{_rank_prefix()}stopped by {stop.by}: {dropped}; the same command goes on from here"


def _rank_prefix() -> str:
    return f"rank {rank()}: " if rank() else ""


def _print_error(error: BaseException) -> None:
    print(f"error: {_rank_prefix()}{one_line(error)}", file=sys.stderr)


def program() -> str:
    """The command that started this process."""
    return "python -m s2flow.score" if sys.argv[0].endswith("score.py") else "python run.py"


def one_line(error: BaseException) -> str:
    """The error on one line: what was wrong, the value, and what to type."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    cause: BaseException | None = error
    while cause is not None:  # a UserError raised inside a Hydra instantiation
        if isinstance(cause, UserError):
            return one_line(cause)
        cause = cause.__cause__
    text, more = str(error), str(error.__cause__ or "")
    key = re.search(r"Could not override '([^']+)'|Key '([^']+)' not in", text)
    if key and "not in" in text + more:
        name = key[1] or key[2]
        return f"{name}: no such key{_nearest(name)}; {program()} --help lists them"
    refused = re.match(r"Error merging override (.*)", text)
    expected = next((w for part, w in WANTED.items() if part in text + more), None)
    if refused and expected:
        place = re.search(r"full_key: (\S+)", text + more)
        place = place[1] if place else refused[1].partition("=")[0]
        return f"{refused[1]} is refused: type {expected} for {place} ({program()} --help)"
    if hasattr(error, "override"):  # Hydra's OverrideParseException
        return (
            f"{error.override} cannot be read; type key=value, and quote the value twice if it "
            f"holds brackets or quotes: \"key='...'\""
        )
    options = "|".join(re.findall(r"^\s+(\S+)$", text, re.MULTILINE))
    for pattern, message in WHAT_TO_TYPE.items():
        if match := re.search(pattern, text):
            return message.format(*match.groups(), program=program(), options=options)
    lines = [line.strip() for line in (text + "\n" + more).split("\n")]
    noise = ("object_type", "reference_type", "full_key: null")
    return "; ".join(dict.fromkeys(x for x in lines if x and not x.startswith(noise)))


def _nearest(key: str) -> str:
    """A hint for an unknown key: a similar one, or the methods that have this parameter."""
    if key.startswith("method."):
        parameters = by_parameter()
        if owners := parameters.get(key.partition(".")[2]):
            return f" of this method (it is one of method={'|'.join(owners)})"
        known = [f"method.{name}" for name in parameters]
    else:
        schema = ScoreConf if program().endswith("score") else Config
        groups = [(f.name, f.type) for f in fields(schema) if is_dataclass(f.type)]
        every = [f.name for f in fields(schema)] + ["experiment"]
        every += [f"{name}.{f.name}" for name, group in groups for f in fields(group)]
        known = [k for k in every if k.rpartition(".")[0] == key.rpartition(".")[0]] or every
    close = difflib.get_close_matches(key, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
