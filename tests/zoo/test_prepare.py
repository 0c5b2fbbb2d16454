"""`zoo.prepare` does ahead of time what a fit does first."""

from zoo.prepare import main


def test_prepare_draws_the_phantom_and_builds_the_store_once(toy, capfd):
    assert main(["--method", "toy"]) == 0
    assert "ready: 12 train, 4 validation studies; store data/.store/" in capfd.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in toy.glob("data/.store/*/*.safetensors")}
    assert len(files) == 16
    lost = sorted(files)[3]
    lost.unlink()
    assert main(["--method", "toy"]) == 0
    again = {path: path.stat().st_mtime_ns for path in toy.glob("data/.store/*/*.safetensors")}
    assert again.keys() == files.keys()
    assert {path for path in files if again[path] != files[path]} == {lost}
    assert not (toy / "runs").exists()


def test_prepare_without_data_is_a_data_fault(toy, capfd):
    assert main(["--method", "toy", "--recipe", "paper", "data.root=nowhere", "model.weights=null"]) == 3
    assert "set data.root" in capfd.readouterr().err
