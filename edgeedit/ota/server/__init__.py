"""The server half: repository, rollout, ledger, receiver, fleet view; no torch, no patch, no device."""
