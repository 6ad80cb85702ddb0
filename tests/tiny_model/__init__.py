"""The tiny model that ships with the package, and how it is made.

`shadow/models/triage.gguf` is a Llama-architecture model of 870 thousand parameters that answers
the synthetic tickets of `bin/tickets.py`. The demo and the tests run on it, so that neither needs a
download or a stub. Continuous integration never trains: it checks the file's hash and accuracy.

To make it again, in an environment with torch, numpy, tokenizers and gguf:

    python -m tests.tiny_model --out shadow/models/triage.gguf

That takes about twelve minutes on two cores, and writes the held-out tickets beside the model.
Seeds and step counts are fixed. Another processor or torch release adds up floats in another order,
so expect the same accuracy, not the same bytes: record the new hashes in `tests/test_tickets.py`.

To measure a file on every held-out ticket, with llama-cpp-python alone:

    python -m tests.tiny_model.accuracy shadow/models/triage.gguf
"""
