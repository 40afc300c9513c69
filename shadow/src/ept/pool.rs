//! The pages of L0's arena that ept02's tables are made of: a free list, and a chain of pages for each owner.

use std::ops::Range;
use vmcs12::addr::Pa;

const END: u32 = u32::MAX;
const PAGE: u64 = 0x1000;

/// Pages taken by one owner, to be given back together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { first: END, last: END }
    }
}

/// A fixed number of pages. Taking one and giving a whole chain back are a few instructions each.
pub struct Pool {
    base: Pa,
    next: Vec<u32>,
    free: u32,
}

impl Pool {
    /// All pages of the range, free.
    pub fn new(pages: Range<Pa>) -> Self {
        let count = ((pages.end.0 - pages.start.0) / PAGE).min(u64::from(END)) as u32;
        let next = (0..count).map(|page| if page + 1 == count { END } else { page + 1 }).collect();
        Self { base: pages.start, next, free: if count == 0 { END } else { 0 } }
    }

    /// A page for the owner of the chain; its content is what it was. `None` if all are taken.
    pub fn take(&mut self, chain: &mut Chain) -> Option<Pa> {
        let page = self.free;
        if page == END {
            return None;
        }
        self.free = self.next[page as usize];
        self.next[page as usize] = chain.first;
        chain.first = page;
        if chain.last == END {
            chain.last = page;
        }
        Some(self.base.plus(u64::from(page) * PAGE))
    }

    /// Frees all pages of the chain.
    pub fn give_back(&mut self, chain: &mut Chain) {
        if chain.last != END {
            self.next[chain.last as usize] = self.free;
            self.free = chain.first;
        }
        *chain = Chain::default();
    }
}
