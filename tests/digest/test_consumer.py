"""The worked consumer of docs/ turns a digest into e-mails."""

import json
import subprocess
import sys
from pathlib import Path

from tests.digest.conftest import House

ROOT = Path(__file__).parent.parent.parent


def test_every_record_becomes_an_e_mail(house: House, tmp_path: Path) -> None:
    house.digest()
    script = ROOT / "docs" / "examples" / "digest" / "render.py"
    said = subprocess.run(
        [sys.executable, str(script), str(house.folder / "out.jsonl"), str(tmp_path / "mails")], check=True, capture_output=True, text=True
    )
    assert said.stdout.startswith("9 e-mails in ")
    mail = (tmp_path / "mails" / f"{house.user(1)}.html").read_text(encoding="utf-8")
    assert "<b>Title 6</b>" in mail and "because you liked Title 5" in mail


def test_a_title_is_text_in_an_e_mail(tmp_path: Path) -> None:
    slot = {"title": "<script>", "item_id": 1, "reason": "because you liked <b>"}
    record = {"user_id": "a/../b", "slots": [slot], "run_id": "r", "model_version": "1"}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    script = ROOT / "docs" / "examples" / "digest" / "render.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "d.jsonl"), str(tmp_path / "mails")], check=True, capture_output=True)
    (mail,) = (tmp_path / "mails").iterdir()
    assert mail.name == "a%2F..%2Fb.html"
    assert "<script>" not in mail.read_text(encoding="utf-8")
