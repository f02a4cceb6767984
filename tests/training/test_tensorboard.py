import tensorflow as tf

from cadc_jax.training import tensorboard


def test_every_value_is_written_at_its_step(tmp_path):
    record = tensorboard.recorder(tmp_path / "run")
    record({"step": 10, "loss": 0.5, "validation": 0.75})
    record({"step": 20, "loss": 0.25, "validation": 0.5})
    (file,) = (tmp_path / "run").iterdir()
    events = tf.compat.v1.train.summary_iterator(str(file))
    seen = {
        (value.tag, event.step): float(tf.make_ndarray(value.tensor))
        for event in events
        for value in event.summary.value
    }
    assert seen == {
        ("loss", 10): 0.5,
        ("validation", 10): 0.75,
        ("loss", 20): 0.25,
        ("validation", 20): 0.5,
    }
