"""Over the air: signed metadata and files from a server, a folder or a stick; rollouts in stages; receipts back."""
