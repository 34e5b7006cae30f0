"""Mixtures: members of several methods in one consensus. Small and odd inputs are tested in `test_every_method.py`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans

from gsec_core import GSEC, SEIC, TAC, TEMI, Mixture, TACKMeans, ZeroShot, pipeline
from gsec_core.clustering.metrics import accuracy
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.methods import BUILT_IN, find
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.mixture import mixed
from gsec_core.methods.mixture.estimator import MixedFeatures, MixturePlan
from gsec_core.methods.tac import estimator as tac
from gsec_core.results import finishing
from gsec_core.settings import load_config
from gsec_core.stages import nouns, prepare, train
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings
from gsec_core.tables import ASSIGNMENTS_TABLE, FEATURES_TABLE, MEMBERS_TABLE

from ..pictures import SMALL, assign_images, cluster, labels, settings, write_pictures
from ..planted import planted

QUICK_GSEC = {"ensemble_size": 2, "max_steps": 10}


def quick(n_clusters: int = 4, **more: object) -> Mixture:
    return Mixture(n_clusters, [("gsec", GSEC(**QUICK_GSEC)), ("tac", TAC(max_steps=15))], **{"n_members": 2, "device": "cpu", **more})  # type: ignore[arg-type]


def test_members_of_each_method_equal_those_the_method_trains_alone() -> None:
    random = np.random.default_rng(0)
    X, S = (random.standard_normal((2100, 12)).astype(np.float32) for _ in range(2))
    fitted = quick(text_weight=0.3).fit(X, text=S)
    alone = TAC(4, n_members=2, max_steps=15, device="cpu").fit(X, text=S)
    plan = GSEC(4, n_members=2, device="cpu", **QUICK_GSEC).plan()
    assert (alone.plan().neighbor_count(len(X)), plan.neighbor_count(len(X))) == (50, 20)
    halves = plan.halves([X, S])
    shared = fitted.plan().neighbors(fitted.plan().features([X, S], fitted.halves_, 0.3))
    near = Neighbors(*(half[:, :20] for half in shared.halves))
    by_gsec = plan.wanted(plan.trained(plan.features([X, S], halves, 0.3), near, plan.blocks))
    for members, expected in ((fitted.members_[0::2], by_gsec), (fitted.members_[1::2], alone.members_)):
        for ours, theirs in zip(members, expected, strict=True):
            for name, array in theirs.parameters.items():
                assert np.array_equal(ours.parameters[name], array)


def test_each_members_logits_are_those_of_its_method_on_the_methods_features() -> None:
    X = np.random.default_rng(0).standard_normal((200, 12)).astype(np.float32)
    fitted = quick().fit(X, text=X[:, ::-1])
    features = fitted.plan().features([X, X[:, ::-1]], fitted.halves_, 0.5)
    assert isinstance(features, MixedFeatures)
    said = fitted.ensemble_.models.logits(features, slice(0, 200), "cpu")
    assert said.shape == (200, 4, 4)
    for part, (plan, own) in enumerate(zip(fitted.plan().parts, features.parts, strict=True)):
        models = plan.models(fitted.members_[part::2])
        assert np.array_equal(said[:, part::2], models.logits(own, slice(0, 200), "cpu"))
    aligned = np.take_along_axis(fitted.ensemble_.permutations.T, said.argmax(2).numpy(), axis=0)
    assert np.array_equal(aligned.T, fitted.member_labels_)


def test_one_method_that_fails_hardly_harms_the_consensus() -> None:
    X, words, y = planted(n=600)
    estimators = [("gsec", GSEC(ensemble_size=4)), ("tac", TAC(max_steps=120)), ("temi", TEMI(max_steps=15))]
    fitted = Mixture(8, estimators, n_members=2, device="cpu").fit(X, nouns=words)
    alone = [accuracy(y, said) for said in fitted.member_labels_]
    assert min(alone[0::3] + alone[1::3]) >= 0.95
    assert max(alone[2::3]) <= 0.5, "the image-only method finds the styles instead of the classes"
    assert accuracy(y, fitted.labels_) >= 0.95
    assert accuracy(y, fitted.predict(X)) >= 0.95


def numbered(plan: MixturePlan) -> dict[int, tuple[int, ...]]:
    return {block: tuple(plan.numbers(block)) for block in plan.blocks}


def test_more_members_add_blocks_and_do_not_change_existing_ones() -> None:
    before: dict[int, tuple[int, ...]] = {}
    for n_members in (1, 3, 4, 5, 11):
        parts = [("gsec", GSEC()), ("tac", TAC()), ("temi", TEMI())]  # blocks of ten, of one and of four
        plan = Mixture(8, parts, n_members=n_members, device="cpu").plan()
        assert plan.n_members == 3 * n_members
        found = numbered(plan)
        assert before.items() <= found.items()
        numbers = [number for block in found.values() for number in block]
        assert len(numbers) == len(set(numbers))
        assert set(range(plan.n_members)) <= set(numbers)
        assert sum(len(block) for number, block in found.items() if number % 3 == 1) == n_members
        before = found


def test_by_default_each_method_has_as_many_members_as_the_one_with_the_fewest() -> None:
    assert Mixture(10, [("gsec", GSEC()), ("tac", TAC())], device="cpu").plan().n_members == 2 * 10
    assert Mixture(10, [("gsec", GSEC()), ("temi", TEMI())], device="cpu").plan().n_members == 2 * 4
    assert Mixture(2000, [("gsec", GSEC()), ("tac", TAC())], device="cpu").plan().n_members == 2 * 2


def test_parameters_of_parts_are_set_by_name_and_shared_parameters_by_the_mixture() -> None:
    mixture = clone(quick()).set_params(tac__max_steps=3, n_clusters=5, random_state=7)
    assert mixture.get_params()["tac__max_steps"] == 3
    for plan in mixture.plan().parts:
        assert (plan.n_clusters, plan.random_state, plan.n_members) == (5, 7, 2)
    assert quick().get_params()["tac__max_steps"] == 15
    assert GSEC(3).n_clusters == 3, "the default of the given estimator must not change"


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (Mixture(3), "estimators: 0 are given"),
        (Mixture(3, [("tac", TAC())]), "estimators: 1 are given. A mixture needs two or more"),
        (Mixture(3, [GSEC(), TAC()]), "estimators: give a list of pairs of a name and an estimator"),
        (Mixture(3, [("k-means", KMeans()), ("tac", TAC())]), "estimators: give a list of pairs"),
        (Mixture(3, [("both", quick()), ("tac", TAC())]), "an estimator of a single method"),
        (Mixture(3, [("a", GSEC()), ("a", TAC())]), "Names provided are not unique"),
        (Mixture(3, [("tac", TAC(max_steps=0)), ("gsec", GSEC())]), "tac__max_steps = 0: it must be at least 1"),
        (Mixture(3, [("tac", TAC()), ("names", ZeroShot())]), "names takes a name for each cluster"),
        (Mixture(3, [("tac", TAC()), ("seic", SEIC())]), "tac and seic use different nouns"),
        (quick(3, text_weight=1.5), "text_weight = 1.5: it must be between 0 and 1"),
        (quick(400, n_members=50), "n_members = 50: aligning them in 400 clusters would take"),
    ],
)
def test_wrong_parameters_are_errors_that_name_them(estimator: Clusterer, says: str) -> None:
    X = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    with pytest.raises(ValueError, match=says):
        estimator.fit(X, nouns=np.random.default_rng(1).standard_normal((40, 8)))


def test_texts_are_required_if_one_method_requires_them() -> None:
    with pytest.raises(ValueError, match=r"Mixture needs images and texts\. Give text or nouns"):
        Mixture(3, [("gsec", GSEC()), ("tac", TACKMeans())], device="cpu").fit(np.ones((9, 4)))


@pytest.mark.parametrize(
    ("name", "texts"),
    [("gsec,tac", ("captions", "nouns")), ("tac, gsec", ("nouns", "captions")), ("temi,gsec", ("none", "nouns", "captions")), ("tac,sic", ("nouns",))],
)
def test_the_text_sources_of_a_mixture_are_the_common_ones_in_the_order_of_its_first_method(name: str, texts: tuple[str, ...]) -> None:
    common = set.intersection(*(set(find(part.strip()).texts) for part in name.split(",")))
    assert find(name).texts == tuple(text for text in find(name.split(",")[0]).texts if text in common)
    assert tuple(text for text in find(name).texts if text in ("captions", "nouns", "none")) == texts


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gsec,magic", 'method = "magic": there is no such method; there are `gsec`'),
        ("gsec,", 'method = "": there is no such method'),
        ("tac,gsec,tac", 'method = "tac,gsec,tac": `tac` is given 2 times'),
        ("gsec,zero-shot", "`zero-shot` takes a name for each cluster"),
    ],
)
def test_an_invalid_name_of_a_mixture_is_refused(name: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        find(name)


def test_methods_without_a_text_source_in_common_are_refused() -> None:
    with pytest.raises(Refused, match=r"no text source can be used by all of them: `tac` takes nouns; `gsec` takes captions\. Leave one out"):
        mixed([replace(find("tac"), texts=("nouns",)), replace(find("gsec"), texts=("captions",))])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_pictures(folder / "in", range(40))
    (folder / "words.txt").write_text("\n".join(["a red disc", "green disc", "wall", "poster", "ball", "flag", "sky", "sun", "plate", "moon"]))
    return folder


def asked(place: Path, store: Path, **more: object) -> PipelineConfig:
    text = {"source": "nouns", "vocabulary": f"file:{place / 'words.txt'}"}
    return settings(place / "in", store, **{"clusters": 3, "method": "gsec,tac", "text": text, "tac": {"max_steps": 12}, "train": {"n_members": 3}, **more})


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return cluster(asked(place, tmp_path_factory.mktemp("store")))[0]


def test_the_stages_give_the_same_result_as_the_estimator(whole: Context) -> None:
    estimators = [("gsec", GSEC(**SMALL)), ("tac", TAC(max_steps=12))]
    fitted = Mixture(3, estimators, n_members=3, text_weight=0.3, device="cpu").fit(
        np.array(load_embeddings(whole)), text=np.array(nouns.load_counterparts(whole))
    )
    members, _ = train.load_members(whole)
    for ours, theirs in zip(members, fitted.members_, strict=True):
        assert ours.parameters.keys() == theirs.parameters.keys()
        for name, array in ours.parameters.items():
            np.testing.assert_allclose(array, theirs.parameters[name], rtol=0, atol=1e-5)
    shards, [name] = whole.run.table(ASSIGNMENTS_TABLE)
    assert np.array_equal(shards.read(name)["cluster"].to_numpy(), fitted.labels_)
    assert shards.read(name)["confidence"].to_numpy() == pytest.approx(fitted.confidence_, abs=1e-5)
    assert whole.read(prepare.STAGE, FEATURES_TABLE)["half"].to_pylist() == ["image", "text"] * 2


def test_images_are_assigned_by_a_mixture_and_the_report_names_its_methods(whole: Context, place: Path) -> None:
    context = assign_images(whole, settings(place / "in", whole.run.files.url, corpus="again"))
    theirs, ours = labels(whole), labels(context)
    assert np.mean([ours[uri] == theirs[uri] for uri in ours]) >= 0.8
    page = Path(finishing.summary(whole)["report"]).read_text()
    assert "gsec,tac, text: nouns" in page


def test_a_run_interrupted_in_train_repeats_only_open_blocks_and_ends_with_equal_labels(
    place: Path, whole: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(place, tmp_path)
    begun = []
    real = tac.TACPlan.train

    def cut(self: tac.TACPlan, features: object, neighbors: object, block: int, progress: object) -> object:
        begun.append(block)
        if block == 1:
            raise KeyboardInterrupt
        return real(self, features, neighbors, block)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(tac.TACPlan, "train", cut)
        with pytest.raises(KeyboardInterrupt):
            cluster(config)
    assert begun[:2] == [0, 1]
    context, _, made = cluster(config)
    assert made["train"]["shards"] == 2, "GSEC's block and TAC's first block were already committed"
    for name in train.blocks(context):
        assert context.shards(train.STAGE, MEMBERS_TABLE).read(name) == whole.shards(train.STAGE, MEMBERS_TABLE).read(name)
    assert labels(context) == labels(whole)


def test_a_run_with_more_members_trains_only_the_new_ones(place: Path, tmp_path: Path) -> None:
    first, _, made = cluster(asked(place, tmp_path))
    assert made["train"]["shards"] == 1 + 3
    more, _, made = cluster(asked(place, tmp_path, train={"n_members": 4}))
    assert made["train"]["shards"] == 1
    assert more.shards(train.STAGE, MEMBERS_TABLE).directory == first.shards(train.STAGE, MEMBERS_TABLE).directory
    fewer, members = train.load_members(first)[0], train.load_members(more)[0]
    assert (len(fewer), len(members)) == (6, 8)
    for before, now in zip(fewer, members[:6], strict=True):
        assert all(np.array_equal(array, now.parameters[name]) for name, array in before.parameters.items())


def test_fingerprints_change_with_the_methods_of_a_mixture_and_their_settings_only(place: Path, tmp_path: Path) -> None:
    def fingerprinted(**more: object) -> object:
        return train.STAGE.settings(asked(place, tmp_path, **more)), prepare.STAGE.settings(asked(place, tmp_path, **more))

    usual = fingerprinted()
    assert fingerprinted(method="gsec, tac") == usual
    assert fingerprinted(temi={"beta": 0.7}) == usual
    for more in ({"method": "tac,gsec"}, {"tac": {"max_steps": 13}}, {"gsec": {"preset": "published"}}, {"method": "gsec,tac,temi"}):
        assert fingerprinted(**more) != usual


def test_seic_can_be_part_of_a_mixture_but_without_its_stage_two() -> None:
    more = {"source": "photos", "clusters": 3, "method": "gsec,seic", "text": {"source": "captions"}}
    assert len(prepare.plan_of(load_config(overrides=more)).blocks) > 1
    with pytest.raises(Refused, match=r"seic\.enhance = true: an encoder can learn from the clusters of one method only"):
        prepare.plan_of(load_config(overrides={**more, "seic": {"enhance": True}}))


def test_mixtures_whose_methods_use_different_nouns_or_too_many_members_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"`tac` and `seic` use different nouns for the images; give text\.source = captions or encoder, or leave one out"):
        pipeline.request(asked(place, tmp_path / "store", method="tac,seic"))
    with pytest.raises(Refused, match="`tac` and `sic` use different nouns for the images; leave one out"):
        pipeline.request(asked(place, tmp_path / "store", method="tac,sic"))
    captions = asked(place, tmp_path / "store", method="tac,seic", text={"source": "captions"})
    assert "seic" in train.STAGE.settings(captions)
    with pytest.raises(Refused, match=r"train\.n_members = 1000: aligning them in 20 clusters would take"):
        pipeline.request(asked(place, tmp_path / "store", clusters=20, train={"n_members": 1000}))


def test_every_pair_of_different_methods_is_a_mixture_unless_one_takes_names() -> None:
    for first in BUILT_IN:
        for second in BUILT_IN:
            if first.takes_names or second.takes_names or first == second:
                with pytest.raises(Refused):
                    mixed([first, second])
            else:
                assert mixed([first, second]).Settings.model_fields.keys() == {first.name, second.name}
