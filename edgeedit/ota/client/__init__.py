"""What a device needs of it: fetch under TUF, rollout documents, receipts.  Knows only files, never what is in a patch."""
