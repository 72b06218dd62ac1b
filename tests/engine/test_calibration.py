"""phi from the logits of a text: what is observed, what is fitted, the file, and that no result depends on it."""

from __future__ import annotations

import copy
import functools
import json
import math
import random

import pytest
import torch
import transformers

from fdpp import calibration
from fdpp.calibration import CalibrationError
from fdpp.calibration.fit import BOUNDS, Maxima, fit_phi, maxima, moving_share
from fdpp.engine.observe import observe_logits
from fdpp.llm import LLM
from tests.engine.helpers import assert_logits_close, forced_logits, load_on
from tests.engine.models import VOCAB
from tests.ops.backends import BACKENDS

IDS = torch.randint(3, VOCAB, (150,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [IDS[:70], IDS[70:90], IDS[90:93]]


def calibrated(llm: LLM) -> calibration.Calibration:
    from fdpp.calibration.measure import calibrate

    found = calibrate(llm.model, IDS, "tiny", "random tokens")
    found.apply(llm.model)
    return found


@pytest.mark.parametrize(
    "variant", ["llama", "mistral-window", "qwen3", "gemma2", "bloom", "mpt-six-heads", "gpt-neox", "opt"]
)
def test_the_logits_are_those_that_transformers_sees(checkpoints, variant):
    path, model = checkpoints(variant)
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # which alone tells them
    llm, seen = LLM(path, dtype="float32"), {}
    observe_logits(llm.model, IDS, lambda layer, head, logits: seen.update({(layer, head): logits.clone()}))
    with torch.inference_mode():
        attentions = model(torch.tensor([IDS]), output_attentions=True).attentions
    assert len(seen) == sum(layer.shape[1] for layer in attentions)
    for (layer, head), logits in seen.items():
        torch.testing.assert_close(logits.softmax(-1), attentions[layer][0, head], rtol=1e-3, atol=1e-5)


def test_the_maxima_are_those_of_rows_and_of_the_first_keys_of_splits():
    logits = torch.randn(7, 150, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(150)[None] > 100 + torch.arange(7)[:, None]] = -math.inf
    seen = maxima(logits)
    assert seen.rows.tolist() == [max(row) for row in logits.tolist()]
    wanted = [max(row[start : start + 16]) for row in logits.tolist() for start in (0, 64, 128)]
    assert seen.tiles.tolist() == [value for value in wanted if value > -math.inf]


@pytest.mark.parametrize("guard", BOUNDS)
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0, 30.0, 300.0])
def test_no_phi_moves_fewer_references(guard, spread):
    rng = random.Random(int(spread))
    rows = torch.tensor([100 + rng.gauss(0, spread) for _ in range(40)])
    tiles = torch.tensor([98 + rng.gauss(-spread, spread) for _ in range(200)])
    seen, (low, high) = Maxima(rows, tiles), BOUNDS[guard]
    fitted = fit_phi(seen, BOUNDS[guard])
    share = moving_share(seen, torch.tensor([fitted]), BOUNDS[guard]).item()
    # Rounding can move one logit across a bound.
    counted = sum(row > fitted + high for row in rows) / 40 + sum(tile < fitted + low for tile in tiles) / 200
    assert share == pytest.approx(float(counted), abs=1 / 40 + 1e-6)
    everywhere = moving_share(seen, torch.linspace(-1000, 1000, 20001), BOUNDS[guard])
    assert share <= everywhere.min()
    if share == 0:  # in the middle of all that move none
        free = torch.linspace(-1000, 1000, 20001)[everywhere == 0]
        assert fitted == pytest.approx(float(free[0] + free[-1]) / 2, abs=0.2)


@pytest.fixture(params=BACKENDS, ids=str)
def load(request, monkeypatch):
    """LLM with the kernels of each backend."""

    return functools.partial(load_on, request.param, monkeypatch)


@pytest.mark.parametrize("phi", ["fitted", 0.0, 300.0, -300.0, 1e30, -1e30, math.inf, math.nan])
@pytest.mark.parametrize("variant", ["llama", "gemma2", "bloom"])
def test_no_result_depends_on_phi(checkpoints, load, variant, phi):
    path, _ = checkpoints(variant)
    llm = load(path, dtype="bfloat16")
    expected = forced_logits(llm, PROMPTS, (66, 1, 2), page=8)
    if phi == "fitted":
        calibrated(llm)
    else:
        for attention in llm.model.attentions:
            attention.phi = torch.full((attention.num_heads,), phi, device=llm.device)
            attention.phi[0] = 0.5
    actual = forced_logits(llm, PROMPTS, (66, 1, 2), page=8)
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine - theirs).norm() < 0.03 * theirs.norm()  # another reference rounds otherwise


def test_float32_keeps_its_digits(checkpoints):
    path, _ = checkpoints("qwen3")
    llm = LLM(path, dtype="float32")
    expected = forced_logits(llm, PROMPTS, (66, 1, 2), page=None)
    calibrated(llm)
    for mine, theirs in zip(forced_logits(llm, PROMPTS, (66, 1, 2), page=None), expected, strict=True):
        assert_logits_close(mine, theirs)


@pytest.fixture(scope="module")
def opt_out_of_range(checkpoints, tmp_path_factory):
    """OPT with logits far from 0, other ones in each head, as that of 6.7B has them (paper: -496.8 .. 363.5)."""
    path, model = checkpoints("opt")
    target = tmp_path_factory.mktemp("opt")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            attention = layer.self_attn
            offset = torch.empty(attention.num_heads).uniform_(-300, 300, generator=generator)
            # A bias of keys that meets one of queries adds the same to all logits of a head.
            attention.q_proj.bias.zero_().view(attention.num_heads, -1)[:, 0] = 8.0
            attention.q_proj.weight.mul_(0.1).view(attention.num_heads, attention.head_dim, -1)[:, 0] = 0.0
            attention.k_proj.weight.view(attention.num_heads, attention.head_dim, -1)[:, 0] = 0.0
            attention.k_proj.bias.zero_().view(attention.num_heads, -1)[:, 0] = offset
    model.save_pretrained(target)
    return target


def moved(llm: LLM) -> float:
    """References that move per row and head over 40 steps."""
    timings = llm.generate(PROMPTS[0], max_new_tokens=41, ignore_eos=True)[0].timings
    return timings.rereferences / (timings.decode_tokens * sum(a.num_heads for a in llm.model.attentions))


def test_opt_profits(opt_out_of_range):
    llm = LLM(opt_out_of_range, dtype="float32")
    tokens = llm.generate(PROMPTS, max_new_tokens=20, ignore_eos=True)
    before = moved(llm)
    found = calibrated(llm)
    assert before > 0.8  # nearly every head of every row
    assert moved(llm) < 0.01
    assert found.moves["wide"][0] > 0.8 and found.moves["wide"][1] < 0.01
    again = llm.generate(PROMPTS, max_new_tokens=20, ignore_eos=True)
    assert [each.token_ids for each in again] == [each.token_ids for each in tokens]


def test_the_file_is_found_and_fits(checkpoints, tmp_path, monkeypatch):
    path, model = checkpoints("llama")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FDPP_DATAFLOW_TABLE", raising=False)
    llm = LLM(path, dtype="float32")
    assert llm.calibration is None
    found = calibrated(llm)
    own = calibration.of_user(found.fingerprint)
    assert own == tmp_path / "cache" / "fdpp" / "phi" / f"{found.fingerprint}.json"
    found.write(own)
    for dtype in ("float32", "bfloat16", "float16"):  # the fingerprint is the model's, not the dtype's
        again = LLM(path, dtype=dtype)
        assert again.calibration == found and again.calibration.path == own
        assert again.model.attentions[1].phi.tolist() == pytest.approx(found.phi["wide"][1])
    assert LLM(path, phi=None).calibration is LLM(path, phi="none").calibration is None
    assert LLM(path, phi=None).model.attentions[0].phi is None
    assert LLM(path, phi=own).calibration == found

    model.save_pretrained(tmp_path / "model")
    found.write(tmp_path / "elsewhere.json")
    beside = calibration.beside_model(tmp_path / "model")
    found.write(beside)
    assert LLM(tmp_path / "model", dtype="float32").calibration.path == beside  # before the user's own


def test_that_of_another_model_is_left_out(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, model = checkpoints("llama")
    found = calibrated(LLM(path, dtype="float32"))
    with torch.no_grad():
        other = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        other.model.layers[1].mlp.down_proj.weight.neg_()
    other.save_pretrained(tmp_path / "other")
    beside = calibration.beside_model(tmp_path / "other")
    found.write(beside)
    with pytest.warns(UserWarning, match="phi left out: .*phi of this model"):
        assert LLM(tmp_path / "other", dtype="float32").calibration is None
    with pytest.raises(CalibrationError, match="fdpp_phi.json: expected phi of this model"):
        LLM(tmp_path / "other", dtype="float32", phi=beside)


def test_beside_a_single_file(tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    assert calibration.beside_model(file) == tmp_path / "model.gguf.fdpp_phi.json"


DAMAGE = {
    "no JSON": lambda content: "{",
    "a list": lambda content: [],
    "no fingerprint": lambda content: {**content, "fingerprint": None},
    "no guard": lambda content: {**content, "phi": {"wide": content["phi"]["wide"]}},
    "a text for a number": lambda content: {**content, "phi": {**content["phi"], "wide": [["1"]]}},
    "a head too many": lambda content: {**content, "quantiles": [*content["quantiles"], [[0.0] * 5]]},
    "too few quantiles": lambda content: {
        **content,
        "quantiles": [[levels[:4] for levels in layer] for layer in content["quantiles"]],
    },
    "no number": lambda content: json.dumps(content).replace("[[", "[[NaN, ", 1),
    "a number beyond all": lambda content: json.dumps(content).replace("[[", "[[1" + 400 * "0" + ", ", 1),
    "no list": lambda content: {**content, "quantiles": [1]},
    "no moves": lambda content: {**content, "moves": {"wide": [1], "narrow": [1, 2]}},
    "another guard": lambda content: {**content, "phi": {**content["phi"], "wide": None}, "moves": {"zz": 5}},
    "nested": lambda content: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(checkpoints, tmp_path, damage):
    path, _ = checkpoints("llama")
    file = tmp_path / "phi.json"
    calibrated(LLM(path, dtype="float32")).write(file)
    content = DAMAGE[damage](json.loads(file.read_text()))
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CalibrationError, match="phi.json: ") as raised:
        LLM(path, phi=file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_missing_file(checkpoints, tmp_path):
    with pytest.raises(CalibrationError, match="nowhere.json: No such file"):
        LLM(checkpoints("llama")[0], phi=tmp_path / "nowhere.json")
