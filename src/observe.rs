//! What a run shows of itself: counters, milestones on the console, the JSON of `--stats`.

pub mod counters;
pub mod marker;
pub mod record;
pub mod stats;
