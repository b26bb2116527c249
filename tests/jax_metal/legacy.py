"""The demo's models under Apple's own jax-metal with its old JAX: run by test_wheels.

Its platform is a second CPU client. Prints, as JSON, the losses per backend and whether the state stayed there.
"""

import json
import warnings

from pretence import jax, m2ml, np, start

from m2ml.training import Session


def main():
    backend = start("jax-metal", jax=jax.__version__, python="3.11.7")
    import lower_for

    found = {"jax": jax.__version__, "platforms": jax.config.jax_platforms, "models": {}}
    for task in lower_for.tasks():
        losses = {}
        for name in ("cpu", "jax_metal"):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                session = Session(task, name)
                session.train()
            losses[name] = np.asarray(session.losses).tolist()
            if name == "jax_metal":
                fallbacks = [str(w.message) for w in said if issubclass(w.category, m2ml.FallbackWarning)]
                owned = all(backend.owns(x) for x in jax.tree.leaves(session.state))
        found["models"][task.name] = {"losses": losses, "fallbacks": fallbacks, "owned": owned}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
