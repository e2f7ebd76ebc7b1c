"""make audit-deps: the installed packages against a list of known vulnerabilities, by pip-audit in an environment of its own.

It never passes silently: a service that cannot be reached, or knows none of the packages, is a failure of its own (exit code 4).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".audit"
PIP_AUDIT = "pip-audit>=2.9,<3"
OK, FOUND, UNKNOWN = 0, 3, 4


def main() -> None:
    if not (ENVIRONMENT / "bin" / "pip-audit").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-q", PIP_AUDIT], check=True)
    told = subprocess.run([sys.executable, "-m", "pip", "freeze", "--exclude-editable"], check=True, capture_output=True, text=True).stdout
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(told)
        pinned.flush()
        command = [
            str(ENVIRONMENT / "bin" / "pip-audit"),
            "--no-deps",
            "--disable-pip",
            "--format",
            "json",
            "-r",
            pinned.name,
            *sys.argv[1:],
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    code, sentence = verdict(ended.stdout, ended.stderr)
    print(sentence, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


def verdict(answer: str, errors: str) -> tuple[int, str]:
    """(exit code, what to say) of pip-audit's output."""
    try:
        packages = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return (
            UNKNOWN,
            f"nothing was audited: the vulnerability service did not answer ({last}); try `make audit-deps` where it can be reached",
        )
    known = [one for one in packages if "skip_reason" not in one]
    if not known:
        why = packages[0]["skip_reason"] if packages else "there are no packages"
        return UNKNOWN, f"nothing was audited: the service knows none of {len(packages)} packages ({why})"
    bad = [(one["name"], one["version"], flaw["id"]) for one in known for flaw in one.get("vulns", [])]
    left = f"; {len(packages) - len(known)} it does not know" if len(known) < len(packages) else ""
    if bad:
        return FOUND, "\n".join([*(f"{name} {version}: {flaw}" for name, version, flaw in bad), f"{len(bad)} known vulnerabilities{left}"])
    return OK, f"{len(known)} packages without a known vulnerability{left}"


if __name__ == "__main__":
    main()
