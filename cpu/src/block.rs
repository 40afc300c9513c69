//! Decoded blocks: runs of operations that end in a jump, cached by machine-physical address and code size.

use crate::state::Cpu;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Executes an operation and goes on; returns null when the run loop must look at [`Cpu::stop`].
pub(crate) type Handler = unsafe fn(&mut Cpu, *const Op) -> *const Op;

/// A decoded instruction with resolved operands. Register operands are byte offsets into `Cpu::gpr`, so that
/// AH, CH, DH and BH are as direct as any other.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Op {
    pub run: Handler,
    /// Immediate operand; of a direct branch, the linked target block.
    pub imm: u64,
    /// Displacement; of a direct branch, the target's distance from the block's RIP.
    pub disp: i32,
    pub dst: u8,
    pub src: u8,
    /// Registers of the memory operand, as indices into `Cpu::gpr`.
    pub base: u8,
    pub scaled: u8,
    pub scale: u8,
    /// Segment register of the memory operand, as `SegmentRegister`.
    pub segment: u8,
    pub len: u8,
    /// Instructions before this one in the block.
    pub index: u8,
    /// Distance of the instruction from the block's RIP.
    pub delta: u16,
    /// What else the handler was told: see each.
    pub extra: u16,
}

/// Most operations in a block.
pub(crate) const MAX_BLOCK: usize = 32;
/// Operations that the cache holds before it is emptied.
const CAPACITY: usize = 2 << 20;
/// Operations in one allocation.
const CHUNK: usize = 1 << 16;
/// Code is tracked in lines of this many bytes.
const LINE: u64 = 64;

/// A hasher for keys that are already well spread.
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;

#[derive(Clone, Copy)]
struct Block {
    start: *mut Op,
    ops: u32,
    /// Lines of the page that its bytes lie in.
    lines: u64,
    key: Key,
}

/// Where a block was decoded: address and code size of the first byte, and the second page's frame if it spans two.
type Key = (u64, u64);

/// Stores beside its code that a page bears before the code is dropped, so that stores may be quick again: pages
/// that held code are used for data later. Each time the code comes back the page bears twice as many.
const PATIENCE: u32 = 64;

struct Page {
    lines: u64,
    blocks: Vec<Block>,
    /// Stores beside the code since it was decoded, and how many may be.
    missed: u32,
    patience: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { lines: 0, blocks: Vec::new(), missed: 0, patience: PATIENCE }
    }
}

/// The block cache.
pub(crate) struct Cache {
    chunks: Vec<Box<[Op]>>,
    used: usize,
    blocks: Map<Key, *const Op>,
    pages: Map<u64, Page>,
    dead: Handler,
    /// Counts how often everything was dropped.
    pub flushes: u64,
}

/// The key of a block at `pa` with this code size.
pub(crate) fn key(pa: u64, code_size: u8, second: u64) -> Key {
    (pa << 2 | u64::from(code_size), second)
}

fn lines_of(from: u64, len: u64) -> u64 {
    let (first, last) = ((from & 0xfff) / LINE, (((from & 0xfff) + len.max(1) - 1).min(0xfff)) / LINE);
    (u64::MAX >> (63 - (last - first))) << first
}

impl Cache {
    pub fn new() -> Self {
        Self {
            chunks: Vec::new(),
            used: CHUNK,
            blocks: Map::default(),
            pages: Map::default(),
            dead: crate::interpret::run_dead,
            flushes: 0,
        }
    }

    /// The block with this key.
    #[inline]
    pub fn get(&self, key: Key) -> Option<*const Op> {
        self.blocks.get(&key).copied()
    }

    /// Must everything be dropped before more is decoded?
    pub fn is_full(&self) -> bool {
        self.chunks.len() * CHUNK >= CAPACITY
    }

    /// Drops every block. No block may be running, and no link or jump cache may keep a target.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.used = CHUNK;
        self.blocks.clear();
        self.pages.clear();
        self.flushes += 1;
    }

    /// Stores a block whose bytes are `len` bytes at `pa`, in one page or spanning into the frame `second`.
    pub fn insert(&mut self, key: Key, ops: &[Op], pa: u64, len: u64, second: Option<u64>) -> *const Op {
        if self.used + ops.len() > CHUNK {
            // SAFETY: never read before being written: `used` counts what has been.
            self.chunks.push(vec![ops[0]; CHUNK].into_boxed_slice());
            self.used = 0;
        }
        let chunk = self.chunks.last_mut().expect("a chunk was just made");
        let place = &mut chunk[self.used..self.used + ops.len()];
        place.copy_from_slice(ops);
        let start = place.as_mut_ptr();
        self.used += ops.len();
        self.blocks.insert(key, start);
        let first_len = len.min(4096 - (pa & 0xfff));
        self.note(pa, first_len, start, ops.len(), key);
        if let Some(second) = second {
            self.note(second, len - first_len, start, ops.len(), key);
        }
        start
    }

    fn note(&mut self, pa: u64, len: u64, start: *mut Op, ops: usize, key: Key) {
        let lines = lines_of(pa, len);
        let page = self.pages.entry(pa >> 12).or_default();
        page.lines |= lines;
        page.blocks.push(Block { start, ops: ops as u32, lines, key });
    }

    /// A store of `len` bytes at `pa` took place: blocks that it may have changed end where they stand.
    /// Returns whether the page has no code any more.
    pub fn written(&mut self, pa: u64, len: usize) -> bool {
        let Some(page) = self.pages.get_mut(&(pa >> 12)) else { return true };
        let lines = lines_of(pa, len as u64);
        let mut lines = lines;
        if page.lines & lines == 0 {
            page.missed += 1;
            if page.missed < page.patience {
                return page.blocks.is_empty();
            }
            (page.missed, page.patience) = (0, page.patience.saturating_mul(2));
            lines = u64::MAX;
        }
        let mut left = 0;
        let (blocks, dead) = (&mut self.blocks, self.dead);
        page.blocks.retain(|block| {
            if block.lines & lines == 0 {
                left |= block.lines;
                return true;
            }
            blocks.remove(&block.key);
            for i in 0..block.ops as usize {
                // SAFETY: `start` points to `ops` operations of a chunk that `clear` alone frees, together with this
                // entry. Raw access: a handler may be running one of them, and reads it before it calls here.
                unsafe { (*block.start.add(i)).run = dead };
            }
            false
        });
        page.lines = left;
        left == 0
    }
}
