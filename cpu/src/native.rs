pub struct Thunks;
impl Thunks {
    pub fn new() -> Self {
        Self
    }
}
