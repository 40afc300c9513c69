//! What the processor has to forget before it runs again: a small fixed list that L0 drains after each call.

use vmcs12::exit::Invalidation;

const ROOM: usize = 16;

/// Invalidations in the order of their requests. A list that is full becomes "everything", which is always allowed.
#[derive(Clone, Debug)]
pub struct Invalidations {
    list: [Invalidation; ROOM],
    len: usize,
}

impl Default for Invalidations {
    fn default() -> Self {
        Self { list: [Invalidation::EptAll; ROOM], len: 0 }
    }
}

impl Invalidations {
    /// Adds a request.
    pub fn push(&mut self, what: Invalidation) {
        if self.as_slice().contains(&what) {
            return;
        }
        if self.len == ROOM {
            self.list[..2].copy_from_slice(&[Invalidation::EptAll, Invalidation::VpidAll]);
            self.len = 2;
            return;
        }
        self.list[self.len] = what;
        self.len += 1;
    }

    /// Is there nothing to forget?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The requests.
    pub fn as_slice(&self) -> &[Invalidation] {
        &self.list[..self.len]
    }

    /// Hands every request over and forgets it.
    pub fn drain(&mut self, mut forget: impl FnMut(Invalidation)) {
        for &what in self.as_slice() {
            forget(what);
        }
        self.len = 0;
    }
}
