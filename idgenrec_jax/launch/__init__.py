"""One absl program per job."""
