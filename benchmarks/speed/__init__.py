"""Speed of lipjax against a peer and against memory bandwidth, as JSON."""
