"""WeightWatcher's table, against WeightWatcher where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast.integrations.weightwatcher import DIFFERENCES, details

SAME = ["M", "N", "Q", "num_evals", "norm", "log_norm", "spectral_norm", "log_spectral_norm", "sv_max", "stable_rank"]


def test_columns() -> None:
    pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    analysis = mpfast.analyze(
        {"a.fc.weight": rng.standard_normal((120, 80)), "b.weight": rng.standard_normal((60, 90))}, progress=False
    )
    table = details(analysis)
    assert list(table.longname) == ["a.fc", "b"]
    assert list(table.name) == ["fc", "b"]
    assert (table.M == [80, 60]).all()
    assert (table.bulk_max > table.bulk_min).all()
    np.testing.assert_allclose(table.norm / table.spectral_norm, table.stable_rank)
    np.testing.assert_allclose(table.norm, [row.fro_norm**2 for row in analysis])
    np.testing.assert_allclose(table.sv_max**2, table.spectral_norm)
    np.testing.assert_allclose(table.log_norm, np.log10(table.norm))
    np.testing.assert_allclose(table.log_spectral_norm, np.log10(table.spectral_norm))
    np.testing.assert_allclose(table.mp_softrank, table.bulk_max / table.spectral_norm)
    assert list(table.num_spikes) == [row.spikes for row in analysis]
    assert set(DIFFERENCES) <= set(table.columns)


def test_against_weightwatcher() -> None:
    torch = pytest.importorskip("torch")
    weightwatcher = pytest.importorskip("weightwatcher")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 150), torch.nn.ReLU(), torch.nn.Linear(150, 100))
    theirs = weightwatcher.WeightWatcher(model=model).analyze(plot=False)
    ours = details(mpfast.analyze(model, progress=False))
    for column in SAME:
        np.testing.assert_allclose(
            ours[column].to_numpy(float), theirs[column].to_numpy(float), rtol=2e-4, err_msg=column
        )
    np.testing.assert_allclose(ours["entropy"], theirs["entropy"], rtol=1e-3)
