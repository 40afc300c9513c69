//! What a run shows of itself: counters, milestones, the JSON of `--stats`.

pub mod counters;
