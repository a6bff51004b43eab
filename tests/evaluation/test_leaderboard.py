"""The leaderboard: which attacks count for which threat model, that numbers are the report's, and the page."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from spa_jax import attribute_attack, autoattack, fab, fgsm, pgd, rays, restarts, spa, worst_of
from spa_jax.evaluation import AttackRecord, Check, Entry, ModelReport, Proportion, evaluate, write_report
from spa_jax.evaluation.card import PartRecord, RobustnessCard
from spa_jax.evaluation.description import describe
from spa_jax.evaluation.drawing import MINUS
from spa_jax.evaluation.entries import READERS, Reader, in_words, read_entries, threat_of
from spa_jax.evaluation.page.leaderboard import leaderboard_page, write_leaderboard
from spa_jax.evaluation.records import Nearest
from spa_jax.perceptual import perceptual_attack, perceptual_distance
from tests.evaluation.pages import WICKED, Page

TURN = {"rotation": (-20, 20)}
TURNED = f"rotation {MINUS}20 to 20"


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda: restarts(pgd(0.1, 3), 2), "linf 0.1"),
        (lambda: pgd(0.5, 3, norm="l2"), "l2 0.5"),
        (lambda: attribute_attack("rotation", -20, 20), TURNED),
        (lambda: spa(0.1, TURN), f"linf 0.1 and {TURNED}"),
        (lambda: worst_of(pgd(0.1, 3), fgsm(0.1)), "linf 0.1"),
        (lambda: worst_of(pgd(0.1, 3), fgsm(0.5, "l2")), "l2 0.5 or linf 0.1"),
        (lambda: worst_of(fab("l2", 0.5), rays(0.1, 5)), "l2 0.5 or linf 0.1"),
        (lambda: autoattack(0.1), "linf 0.1"),
        (lambda: perceptual_attack(perceptual_distance(lambda x: [x]), 0.25), "perceptual 0.25"),
    ],
)
def test_the_threat_model_of_an_attack_is_read_from_its_description(attack, words):
    description = json.loads(json.dumps(describe(attack())))
    assert in_words(threat_of(description)) == words


def test_a_function_of_ones_own_is_a_threat_model_of_its_own():
    assert in_words(threat_of({"type": "my_attack"})) == "my_attack"
    assert in_words(threat_of({"type": "my_attack", "loss": {"type": "my_loss", "bound": 3}})) == "my_attack"
    assert in_words(threat_of({"type": "my_attack", "norm": "l2", "radius": "inf"})) == "my_attack"


ATTACKS = {"noise": pgd(0.1, 3), "turn": attribute_attack("rotation", -20, 20), "joint": spa(0.1, TURN)}


def report(seed, names=tuple(ATTACKS), **changes):
    rng = np.random.default_rng(seed)
    clean = rng.uniform(size=50) < 0.9
    attacks = {
        name: AttackRecord(clean & (rng.uniform(size=50) < 0.6), 45, parameters=describe(ATTACKS[name]))
        for name in names
    }
    own = ModelReport(np.arange(50, dtype=np.int32) % 5, clean, attacks, False)
    return dataclasses.replace(own, **changes)


def write(directory, models, dataset="digits, test split"):
    write_report(models, directory, title="t", dataset=dataset, seed=0, config={})
    return directory / "report.json"


def test_every_attack_that_a_threat_model_allows_counts(tmp_path):
    own = report(0)
    found = {entry.threat: entry for entry in read_entries([write(tmp_path, {"a": own})])}
    correct = {name: record.correct for name, record in own.attacks.items()}
    expected = {
        "linf 0.1": own.clean & correct["noise"],
        TURNED: own.clean & correct["turn"],
        f"linf 0.1 and {TURNED}": own.clean & correct["noise"] & correct["turn"] & correct["joint"],
    }
    assert set(found) == set(expected)
    for threat, flags in expected.items():
        assert found[threat].robust == Proportion.of(flags)
        assert found[threat].clean == Proportion.of(own.clean)
    assert found["linf 0.1"].attacks == ("noise",)
    assert found[f"linf 0.1 and {TURNED}"].attacks == ("noise", "turn", "joint")


def test_a_cascade_has_one_threat_model_and_its_worst_case(tmp_path):
    own = report(0, ("noise", "turn"), survivors_only=True)
    (entry,) = read_entries([write(tmp_path / "a", {"a": own})])
    assert entry.threat == f"linf 0.1 or {TURNED}"
    assert entry.robust == own.accuracies["worst_case"] and entry.attacks == ("noise", "turn")
    with_joint = report(0, survivors_only=True)
    (entry,) = read_entries([write(tmp_path / "b", {"a": with_joint})])
    assert entry.threat == f"linf 0.1 and {TURNED}"


def test_attacks_at_any_distance_are_no_threat_model(tmp_path):
    own = report(0, ("noise",), survivors_only=True)
    nearest = AttackRecord(np.zeros(50, bool), 50, parameters=describe(rays()), nearest=Nearest("linf", np.ones(50)))
    own = dataclasses.replace(own, attacks={"rays": nearest, **own.attacks})
    (entry,) = read_entries([write(tmp_path, {"a": own})])
    assert entry.threat == "linf 0.1" and entry.attacks == ("noise",)
    assert entry.robust == own.accuracies["worst_case"] and entry.robust.correct > 10


def test_alarms_are_counted(tmp_path):
    own = report(0, ("noise",), checks=(Check("gradients", False, "m", "a", {}, "c"), Check("x", True, "m", "a", {})))
    broken = dataclasses.replace(own, attacks={"noise": dataclasses.replace(own.attacks["noise"], broken=2)})
    entries = read_entries([write(tmp_path, {"a": own, "b": broken})])
    assert [entry.alarms for entry in entries] == [1, 2]


def test_an_evaluation_is_read(tmp_path, linear_victim, split):
    found = evaluate(linear_victim, split, {"fgsm": fgsm(0.005)}, key=jax.random.key(0), batch_size=32, sanity=False)
    (entry,) = read_entries([write(tmp_path, {"linear": found})])
    assert entry.robust == found.accuracies["worst_case"] and entry.threat == "linf 0.005"


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.json' cannot be read: .*No such file"):
        read_entries([tmp_path / "none.json"])
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(ValueError, match=r"text.json' cannot be read"):
        read_entries([tmp_path / "text.json"])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"other.json' must be of one of the kinds report.json, card.json of AutoAttack$"
    ):
        read_entries([tmp_path / "other.json"])
    (tmp_path / "torn.json").write_text('{"models": {"a": {}}, "survivors_only": true}')
    with pytest.raises(ValueError, match=r"torn.json' cannot be read"):
        read_entries([tmp_path / "torn.json"])
    with pytest.raises(ValueError, match="holds no model under attack"):
        read_entries([write(tmp_path, {"a": report(0, ())})])
    with pytest.raises(ValueError, match="paths must hold at least one file"):
        write_leaderboard([], tmp_path / "l.html")


CARD = RobustnessCard(
    model="wrn",
    data="cifar10",
    norm="linf",
    radius=8 / 255,
    version="standard",
    loss="ce",
    seed=0,
    clean=Proportion(180, 200),
    robust=Proportion(104, 200),
    parts=(PartRecord("apgd_ce", 180, 70, 1.0, 100), PartRecord("square", 110, 6, 1.0, 5000)),
    checks=(Check("gradients", False, "m", "a", {}, "c"), Check("finite", True, "m", "a", {})),
    claimed=0.56,
    versions={},
).as_data()


def test_a_card_of_autoattack_is_read(tmp_path):
    (tmp_path / "wide").mkdir()
    path = tmp_path / "wide" / "card.json"
    path.write_text(json.dumps(CARD))
    (entry,) = read_entries([path])
    assert (entry.model, entry.dataset, entry.threat) == ("wrn", "cifar10", "linf 0.0314")
    assert (entry.robust, entry.clean, entry.claimed) == (Proportion(104, 200), Proportion(180, 200), 0.56)
    assert entry.attacks == ("AutoAttack standard (apgd_ce, square)",) and entry.alarms == 1
    path.write_text(json.dumps(CARD | {"model": "", "data": "", "claimed": None, "warnings": []}))
    (entry,) = read_entries([path])
    assert (entry.model, entry.dataset, entry.claimed, entry.alarms) == ("wide", "data without a name", None, 0)
    path.write_text(json.dumps({"attack": "autoattack"}))
    with pytest.raises(ValueError, match=r"card.json' cannot be read: 'norm'"):
        read_entries([path])


def test_a_card_stands_beside_reports_on_the_same_data(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(CARD | {"data": "digits", "radius": 0.1}))
    entries = read_entries([write(tmp_path, {"a": report(0, ("noise",))}), tmp_path / "card.json"])
    page = Page(leaderboard_page(entries))
    assert [own[2] for own in page.all("caption")] == ["digits, linf 0.1"]
    assert len(page.all("th", scope="row")) == 2


def test_another_kind_of_file_is_one_more_reader(tmp_path, monkeypatch):
    def read(content, path):
        threat = f"{content['norm']} {content['radius']:g}"
        return [Entry(content["name"], "cifar10", threat, Proportion(*content["robust"]), claimed=content["claimed"])]

    monkeypatch.setitem(READERS, "card", Reader(lambda content: "claimed" in content, read))
    card = {"name": "wrn", "norm": "linf", "radius": 0.031, "robust": [520, 1000], "claimed": 0.62}
    (tmp_path / "card.json").write_text(json.dumps(card))
    (entry,) = read_entries([tmp_path / "card.json"])
    page = Page(leaderboard_page([entry]))
    assert "62.0 % above measured" in [own[2] for own in page.all("td")]
    fair = dataclasses.replace(entry, claimed=0.53)
    assert "above measured" not in leaderboard_page([fair])


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    paths = [write(tmp_path / "one", {"a": report(0), WICKED: report(1)})]
    paths.append(write(tmp_path / "two", {"a": report(2, ("noise",))}))
    paths.append(write(tmp_path / "three", {"z": report(3, ("noise",))}, dataset=WICKED))
    entries = write_leaderboard(paths, tmp_path / "new" / "leaderboard.html", title=WICKED)
    text = (tmp_path / "new" / "leaderboard.html").read_text("utf-8")
    assert leaderboard_page(entries, title=WICKED) == text
    return Page(text), entries, text


def test_it_is_well_formed_and_names_stay_text(page):
    parsed, _, text = page
    assert parsed.problems == []
    assert parsed.all("h1")[0][2] == WICKED and "<script>alert" not in text
    names = [own[1]["id"] for own in parsed.elements if "id" in own[1]]
    assert len(names) == len(set(names))
    assert {own[1]["href"].removeprefix("#") for own in parsed.all("a")} <= set(names)


def test_it_groups_by_data_and_threat_model_and_has_every_entry(page):
    parsed, entries, _ = page
    groups = {(entry.dataset, entry.threat) for entry in entries}
    captions = [own[2] for own in parsed.all("caption")]
    assert sorted(captions) == sorted(f"{dataset}, {threat}" for dataset, threat in groups)
    assert len(entries) == 3 + 3 + 1 + 1
    assert "3 models from" not in parsed.all("p", class_="lead")[0][2]
    assert parsed.all("p", class_="lead")[0][2] == "4 models from 3 files."
    for table in parsed.all("table"):
        own = [entry for entry in entries if table[2].startswith(f"{entry.dataset}, {entry.threat}model")]
        ordered = sorted(own, key=lambda entry: -entry.robust.value)
        shown = [f"{100 * entry.robust.value:.1f} %" for entry in ordered]
        places = [table[2].index(text) for text in shown]
        assert own and places == sorted(places)
        for entry in own:
            assert f"{100 * entry.robust.low:.1f} to {100 * entry.robust.high:.1f}" in table[2]
            assert ", ".join(entry.attacks) in table[2] and entry.source.split("/")[-2] in table[2]


def test_only_what_differs_of_the_paths_is_shown(page):
    _, entries, text = page
    directory = entries[0].source.rsplit("/", 2)[0]
    assert directory not in text and ">one<" in text and "report.json" not in text


@pytest.mark.parametrize(
    ("sources", "shown"),
    [
        (["/a/one/report/report.json", "/a/two/report/report.json"], ["one", "two"]),
        (["runs/x/report/report.json"], ["runs/x"]),
        (["/a/report.json", "/a/card.json"], ["report.json", "card.json"]),
        (["report.json"], ["report.json"]),
        (["/a/b/report.json", "/a/b/c/card.json"], ["report.json", "c"]),
    ],
)
def test_a_run_goes_by_its_directory(sources, shown):
    entries = [Entry("m", "d", "linf 0.1", Proportion(1, 2), source=source) for source in sources]
    cells = [own[2] for own in Page(leaderboard_page(entries)).all("td", class_="wide muted")]
    assert sorted(cells) == sorted(shown)


def test_the_sorted_column_is_told(page):
    parsed, _, _ = page
    told = [own[2] for own in parsed.all("th", aria_sort="descending")]
    assert told == ["robust"] * len(parsed.all("table"))
