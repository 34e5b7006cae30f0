"""The stack file: valid and refused contents, and the variables that the services get."""

from pathlib import Path

import pytest

from deployments import config
from flows import demo, roots
from gsec_core.errors import Refused

FILE = """
home = "stack"
port = 5000
roots = ["s3://photos"]

[pipelines.photos]
cron = "0 3 * * *"
timezone = "Europe/Berlin"
[pipelines.photos.settings]
source = "{here}/images"
store = "{here}/store"
clusters = 7
describe = {{ captioner = "openai:m", url = "http://one:8000/v1,http://two:8000/v1" }}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "stack.toml"
    path.write_text(text.format(here=folder))
    return path


def test_a_pipeline_has_its_settings_and_is_published_under_its_name(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, FILE))
    photos = stack.pipeline("photos")
    assert (photos.clusters, photos.pipeline, photos.source) == (7, "photos", f"{tmp_path}/images")
    assert stack.home == tmp_path / "stack"
    assert stack.stores() == [f"{tmp_path}/store"]


def test_a_stack_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "stack.toml").write_text("port = 4300\n", encoding="utf-8-sig")
    assert config.load(tmp_path / "stack.toml").port == 4300


def test_roots_are_those_listed_and_the_places_that_pipelines_use(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, FILE))
    assert stack.all_roots() == ["s3://photos", f"{tmp_path}/images", f"{tmp_path}/store", "http://one:8000/v1", "http://two:8000/v1"]
    assert config.worker_environment(stack, {})[roots.VARIABLE] == ",".join(stack.all_roots())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 70000", "port: Input should be less than or equal to 65535"),
        ("prot = 1", "prot: Extra inputs are not permitted; there are home, host"),
        ("port = ", "it is not TOML"),
        ('maintenance_cron = "sunday"', 'Invalid cron string: "sunday"'),
        ("port = 4280", "port and reports_port are both 4280: choose another port"),
        ("port = 4281\nray.port = 4281", "port and ray.port are both 4281"),
        ('redis = "localhost"', ": redis: give it as HOST:PORT"),
        ('[pipelines.x]\ncron = "61 * * * *"\nsettings = {{ source = "a", store = "b" }}', ': pipelines.x.cron: Invalid cron string: "61 * * * *".'),
        ('[pipelines.x]\ntimezone = "Nowhere/Town"\ncron = "0 3 * * *"\nsettings = {{ source = "a", store = "b" }}', "pipelines.x"),
        ("[pipelines.x.settings]\nclusters = 7", "pipelines.x.settings: it needs a source and a store"),
        ('[pipelines.x.settings]\nsource = "a"\nstore = "b"\nclusters = 1', "clusters = 1"),
        (
            '[pipelines.x.settings]\nsource = "a"\nstore = "b"\ndescribe.template = "mine.toml"',
            "pipelines.x.settings: describe.template = mine.toml: give an absolute path",
        ),
        ('[pipelines."X Y".settings]\nsource = "a"\nstore = "b"', "a pipeline's name has"),
    ],
)
def test_a_wrong_stack_file_is_refused_with_the_reason(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        config.load(write(tmp_path, text))
    assert said in str(refused.value)


def test_a_missing_stack_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it cannot be read"):
        config.load(tmp_path / "none.toml")


def test_the_worker_gets_the_operators_variables_but_not_the_commands_log_level_and_api_url(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, FILE))
    quiet = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_API_URL": "http://elsewhere/api", "PREFECT_CLIENT_MAX_RETRIES": "2"}
    told = config.worker_environment(stack, quiet)
    assert told["PREFECT_LOGGING_LEVEL"] == "INFO"
    assert told["PREFECT_API_URL"] == "http://127.0.0.1:5000/api"
    assert told["PREFECT_CLIENT_MAX_RETRIES"] == "2"


def test_a_root_with_a_comma_is_refused(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, FILE)).model_copy(update={"roots": ("/images/a,b",)})
    with pytest.raises(Refused, match=r"^roots: /images/a,b has a comma"):
        config.worker_environment(stack, {})


def test_the_worker_gets_the_servers_password_from_the_environment(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, FILE))
    assert "PREFECT_API_AUTH_STRING" not in config.worker_environment(stack, {})
    assert config.worker_environment(stack, {"PREFECT_SERVER_API_AUTH_STRING": "me:secret"})["PREFECT_API_AUTH_STRING"] == "me:secret"


def test_the_server_gets_postgresql_and_redis_from_the_stack_file(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, 'database = "postgresql+asyncpg://me@host/prefect"\nredis = "cache:6380"\n' + FILE))
    told = config.server_environment(stack, {})
    assert told["PREFECT_API_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://me@host/prefect"
    assert (told["PREFECT_REDIS_MESSAGING_HOST"], told["PREFECT_REDIS_MESSAGING_PORT"]) == ("cache", "6380")
    assert told["PREFECT_MESSAGING_BROKER"] == "prefect_redis.messaging"


def test_a_server_reachable_from_other_machines_needs_a_password(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, 'host = "0.0.0.0"\n' + FILE))
    with pytest.raises(Refused, match="only with a password"):
        config.server_environment(stack, {})
    assert config.server_environment(stack, {config.AUTH: "me:secret"})["PREFECT_API_URL"] == "http://127.0.0.1:5000/api"


def test_a_ray_head_needs_a_token_and_the_worker_gets_its_address(tmp_path: Path) -> None:
    stack = config.load(write(tmp_path, FILE + "[ray]\nport = 6390\n"))
    with pytest.raises(Refused, match=r"^ray: .* only with a token\. Set RAY_AUTH_TOKEN"):
        config.check_ray({config.RAY_TOKEN: ""})
    config.check_ray({config.RAY_TOKEN: "a-secret"})
    told = config.worker_environment(stack, {config.RAY_TOKEN: "a-secret", "RAY_ADDRESS": "elsewhere:6379"})
    assert {"RAY_ADDRESS": "127.0.0.1:6390", "RAY_AUTH_MODE": "token"}.items() <= told.items()
    assert "a-secret" not in str(told)
    assert "RAY_ADDRESS" not in config.worker_environment(config.load(write(tmp_path, FILE)), {})


def test_a_ray_head_without_the_package_ray_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'gsec\[ray\]'"):
        config.check_ray({config.RAY_TOKEN: "a-secret"})


@pytest.mark.parametrize("auth", ["", "me", "me:"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_an_empty_password_is_refused(host: str, auth: str) -> None:
    with pytest.raises(Refused, match="there is no password in it"):
        config.server_environment(config.StackConfig(host=host), {config.AUTH: auth})


@pytest.mark.parametrize(("host", "reached"), [("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")])
def test_addresses_are_given_as_a_browser_accepts_them(host: str, reached: str) -> None:
    stack = config.StackConfig(host=host, port=5000, reports_port=5001)
    assert (stack.url(), stack.reports_url()) == (f"http://{reached}:5000/api", f"http://{reached}:5001")


def test_redis_without_its_package_is_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="pip install 'gsec"):
        config.server_environment(config.load(write(tmp_path, 'redis = "cache:6380"\n' + FILE)), {})


def test_without_a_stack_file_the_demonstration_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "STAMPS", tmp_path / "none")
    pipeline = config.load(None).pipeline("demo")
    assert pipeline.source == str(tmp_path / "gsec-stack" / "images")
    assert len(list(Path(pipeline.source).rglob("*.jpg"))) > 50
