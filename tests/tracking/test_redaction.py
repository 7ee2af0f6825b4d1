"""Passwords stay out of what is printed and stored, whatever characters they hold; other text stays readable."""

from __future__ import annotations

import logging
import re
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from mrisr.config import load_experiment
from mrisr.config.loading import ConfigError, dump_experiment
from mrisr.tracking import redaction
from mrisr.tracking.availability import first_line
from mrisr.tracking.redaction import MASK, mask_message, mask_secrets, redact_logs, remember

# Both ends are words that occur nowhere else, so that a part that is left shows.
MARKS = "Zq7x", "K9wv"
raw_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
passwords = raw_text.map(lambda middle: f"{MARKS[0]}{middle}{MARKS[1]}")
users = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":/"), max_size=6).map("us{}".format)
hosts = st.sampled_from(["db.example.org", "localhost", "10.0.0.7", "[2001:db8::7]"])
ports = st.sampled_from(["", ":5000", ":5432"])
schemes = st.sampled_from(["postgresql", "mysql+pymysql", "mssql+pyodbc", "http", "https", "jdbc:oracle", "s3", "ray"])
paths = st.sampled_from(["", "/", "/name", "/mlflow/api/2.0", "/name?charset=utf8", "/?sslmode=require&x=a%20b"])


def leaks(text: str) -> bool:
    return any(mark in text for mark in MARKS)


@settings(max_examples=150, deadline=None)
@given(schemes, users, passwords, hosts, ports, paths)
def test_no_character_of_a_password_hides_it(
    scheme: str, user: str, password: str, host: str, port: str, path: str
) -> None:
    raw = f"{scheme}://{user}:{password}@{host}{port}{path}"
    encoded = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}{port}{path}"
    for address in (raw, encoded):
        shown = mask_secrets(address)
        assert not leaks(shown)
        assert shown.startswith(f"{scheme}://")
        assert shown.endswith(f"@{host}{port}{path}")
        for holder in ({"tracking": {"uri": address}}, [address], (1, [address])):
            assert not leaks(repr(mask_secrets(holder)))


@settings(max_examples=150, deadline=None)
@given(users, passwords, hosts, ports, paths)
def test_what_sqlalchemy_reads_as_a_password_is_masked(
    user: str, password: str, host: str, port: str, path: str
) -> None:
    address = f"postgresql://{user}:{password}@{host}{port}{path}"
    try:
        read = make_url(address)
    except (ArgumentError, ValueError):
        assume(False)
    assume(read.password is not None)
    shown = make_url(mask_secrets(address))
    assert shown.username == MASK
    assert (shown.database, shown.query, shown.port) == (read.database, read.query, read.port) or "@" in password


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"], exclude_characters="'\"`()[]{}<>"), max_size=12),
    st.sampled_from(["http", "postgresql", "mysql+pymysql"]),
    st.sampled_from(
        ["{}", "at {} it fails", "'{}'", '"{}", not \'{}\'', "({})", "<{}>", "[{}, {}]", "{}.", "is it {}?",
         "--tracking-uri={} x", "tracking.uri={}", "a\n{}\nb", "{} and {}", "{},{}", "url:{}"]
    ),
)  # fmt: skip
def test_addresses_in_the_middle_of_a_message(middle: str, scheme: str, frame: str) -> None:
    text = frame.format(*[f"{scheme}://me:{MARKS[0]}{middle}{MARKS[1]}@host.example:5000/name"] * 2)
    shown = mask_message(text)
    assert not leaks(shown)
    assert shown == frame.format(*[f"{scheme}://***@host.example:5000/name"] * 2)


@pytest.mark.parametrize("password", ["Zq7x K9wv", "Zq7x'K9wv", "Zq7x)K9wv", "Zq7x, 'K9wv", 'Zq7x "K9wv'])
@pytest.mark.parametrize("frame", ["at '{}' it fails", 'at "{}" it fails', "at {} it fails", "({})"])
def test_blanks_and_quotes_within_a_password_within_a_message(password: str, frame: str) -> None:
    shown = mask_message(frame.format(f"postgresql://me:{password}@host/name"))
    assert not leaks(shown)
    assert "@host/name" in shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/NAME@champion", "--model models:/mdcsrn@champion: no such alias", "generator.init_from='models:/a@b'",
        "file@home", "mail to me@example.com, please", "sqlite:////home/me/a:b/c@d/mlflow.db", "sqlite:///mlflow.db?timeout=5",
        "sqlite://:memory:", "file:///home/me@work/x", "/data/a:b@c/file.nii.gz", "C:\\data\\a@b", "s3://bucket/key@2",
        "http://127.0.0.1:5000", "http://[::1]:5000/#/experiments/1", "http://host:5000, then models:/a@champion",
        "tracking URI http://127.0.0.1:5000: model 'models:/a@champion' does not exist", "(see http://sqlalche.me/e/20/e3q8)",
        "runs:/0123/model@x", "sub-01_ses-2@3T", "output: was '/a', now '/b'", "12:30:05 started",
            "/data/token_study: no such folder", "/tmp/test_a_password0: is no store",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_message(text) == text
    if " " not in text:  # a value, which may be an address with a blank in its password
        assert mask_secrets({"key": [text]}) == {"key": [text]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot log in as me:Zq7x@db.example", "cannot log in as ***@db.example"),
        ("dsn 'me:p/Zq7x@K9wv@10.0.0.7:5432/name'", "dsn '***@10.0.0.7:5432/name'"),
        ("oracle me@tenant:Zq7x@host", "oracle ***@host"),
        ("host=h user=me password=Zq7x dbname=d", "host=h user=me password=*** dbname=d"),
        ("host=h password='Zq7x K9wv' user=me", "host=h password='***' user=me"),
        ("DRIVER=x;UID=me;PWD=Zq7x;DB=d", "DRIVER=x;UID=me;PWD=***;DB=d"),
        ("{'token': 'Zq7x', 'n': 1}", "{'token': '***', 'n': 1}"),
        ('{"api_key": "Zq7x\\"K9wv"}', '{"api_key": "***"}'),
        ("Authorization: Bearer Zq7xK9wv", "Authorization: Bearer ***"),
        ("MLFLOW_TRACKING_TOKEN=Zq7x mrisr train", "MLFLOW_TRACKING_TOKEN=*** mrisr train"),
        ("https://Zq7xK9wv@host.example/path", "https://***@host.example/path"),
        ("redis://:Zq7x@host:1/0", "redis://***@host:1/0"),
        ("postgresql://me@tenant:Zq7x@host/d", "postgresql://***@host/d"),
        ("http://me:Zq7x/K9wv", "http://me:***"),
        ("http://me:12/Zq7x@host/x", "http://me:***@host/x"),
        ("https://b.example/o?X-Sig=1&sig=Zq7x&a=2", "https://b.example/o?X-Sig=1&sig=***&a=2"),
        ("sqlite:///file:/a/b.db?uri=true&pass%77ord=Zq7x", "sqlite:///file:/a/b.db?uri=true&pass%77ord=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DZq7x", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://a.example/?next=http%3A%2F%2Fme%3AZq7x%40h", "https://a.example/?next=***"),
        ("jdbc:sqlserver://h:1433;user=me;password=Zq7x", "jdbc:sqlserver://h:1433;user=me;password=***"),
        ("postgresql://me:Zq7x@host/d?email=a@b.c", "postgresql://***@host/d?email=***@b.c"),
    ],
)
def test_secrets_in_other_forms(text: str, shown: str) -> None:
    assert mask_message(text) == shown


def test_secret_keys_in_nested_values() -> None:
    value = {"a": [{"Password": "Zq7x", "token": None}, ("http://me:Zq7x@h", 3)], "db": {"api-key": ["Zq7x"], "n": 1.5}}
    assert mask_secrets(value) == {
        "a": [{"Password": MASK, "token": None}, ("http://***@h", 3)], "db": {"api-key": MASK, "n": 1.5},
    }  # fmt: skip


@pytest.mark.parametrize("password", ["Zq7x/K9wv", "Zq7x@K9wv", "Zq7x/K9wv@Zq7x", "Zq7x?K9wv=@/:#"])
def test_an_experiment_is_written_without_its_password(password: str) -> None:
    overrides = [f'tracking.uri="http://me:{password}@host:5000"', f'tuning.storage="mysql://me:{password}@db/study"']
    experiment = load_experiment(None, overrides)
    assert leaks(experiment.model_dump_json())
    assert not leaks(dump_experiment(experiment))
    assert "mysql://***@db/study" in dump_experiment(experiment)


@pytest.mark.parametrize("password", ["SECRET", "SEC/RET", "SEC@RET", "SEC:RET", "SEC RET", "SEC#RET"])
def test_an_address_in_the_place_of_a_path_is_refused_and_masked(password: str) -> None:
    """pathlib makes http:/user:password@host of it, and `convert --store s3://bucket` made a folder `s3:`."""
    for key in ("output", "data.store"):
        with pytest.raises(ConfigError, match="is an address") as refused:
            load_experiment(None, [f"{key}=http://user:{password}@127.0.0.1:9/x"])
        assert not {"SEC", "RET"} & set(re.findall("SEC|RET", mask_message(refused.value)))
    shown = f"Error: /here/http:/user:{password}@127.0.0.1:9: no such folder"
    assert mask_message(shown) == "Error: /here/http:/***@127.0.0.1:9: no such folder"
    usual = "model 'models:/hcp': write models:/NAME@champion"
    assert mask_message(usual) == usual


def test_a_message_is_masked_before_it_is_cut() -> None:
    for length in range(150, 260):
        error = RuntimeError("x" * length + " http://me:Zq7xK9wv/Zq7xK9wv@host/x is away\nsecond line")
        assert not leaks(first_line(error))
        assert len(first_line(error)) <= 200


def test_parts_of_a_password_that_a_library_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    remember("http://me:Zq7x/p%40ss@K9wv@host:5000/mlflow")
    assert not leaks(mask_message("Failed to parse: 'me:Zq7x', could not translate host name \"K9wv@host\""))
    assert "p@ss" not in mask_message("password p@ss refused")
    remember("postgresql://me:Zq7xK9wv")
    assert not leaks(mask_message("invalid literal for int() with base 10: 'Zq7xK9wv'"))
    remember("postgresql://mlflow:mlflow@host/mlflow")
    assert mask_message("run mlflow db upgrade") == "run mlflow db upgrade"


def test_what_libraries_log_is_masked(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    try:
        redact_logs()
        redact_logs()
        try:
            raise RuntimeError("http://me:Zq7x@host")
        except RuntimeError:
            logging.getLogger("some.library").exception("at %s, %d %%", "http://me:K9wv@host", 3)
    finally:
        logging.setLogRecordFactory(before)
    assert not leaks(caplog.text)
    assert "at http://***@host, 3 %" in caplog.text
