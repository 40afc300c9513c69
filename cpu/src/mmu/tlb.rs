//! The software TLB: a pool of contexts, each with its translations and its jump cache.

use crate::block::Op;
use std::alloc::Layout;

/// Translations a context holds.
pub(crate) const ENTRIES: usize = 4096;
/// Branch targets a context holds.
const JUMPS: usize = 4096;
/// Contexts in the pool.
const CONTEXTS: usize = 32;

/// One translation of a 4-KiB linear page. A tag is the page's linear address, or one that no address that
/// selects this entry is near.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    pub read: u64,
    pub write: u64,
    /// The page in this process.
    pub host: *mut u8,
    /// Machine-physical page, with the attributes below in the low bits.
    pub frame: u64,
}

/// Attributes in the low bits of [`Entry::frame`].
pub(crate) const EXECUTABLE: u64 = 1 << 0;
pub(crate) const GLOBAL: u64 = 1 << 1;
/// A user page in a supervisor context: usable only while SMAP is suspended.
pub(crate) const USER: u64 = 1 << 2;

/// A branch target that has been translated: its linear address and the block there.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    pub linear: u64,
    pub target: *const Op,
}

/// What the translations of a context depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Key {
    pub vpid: u16,
    pub pcid: u16,
    /// Root of the EPT in use; 0 without EPT.
    pub ept_root: u64,
    /// Paging mode, privilege class, code size: see `Cpu::context_mode`.
    pub mode: u32,
    pub pkru: u32,
}

/// A set of translations that belong to one address space at one privilege.
#[repr(C)]
pub(crate) struct Context {
    pub entries: [Entry; ENTRIES],
    pub jumps: [Jump; JUMPS],
    /// Exclusive-ored into the addresses of `jumps`: another salt forgets them all.
    pub salt: u64,
    pub key: Key,
    used: u64,
    in_use: bool,
    /// 2-MiB regions (hashed) of which a fragment of a larger page is cached.
    large: [u64; 16],
    /// A fragment of a 1-GiB page is cached.
    has_1g: bool,
    /// Entries that may hold a translation: all that a flush looks at.
    filled: Slots,
    /// Pages (hashed) that a branch target is in.
    code: Slots,
}

/// A set of slots, or of hashes.
#[derive(Clone, Copy)]
struct Slots([u64; ENTRIES / 64]);

impl Slots {
    const NONE: Self = Self([0; ENTRIES / 64]);

    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn remove(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 != 0
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, bits)| {
            let mut left = bits;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(word * 64 + bit)
            })
        })
    }
}

/// The index of a linear address.
#[inline(always)]
pub(crate) fn index(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

/// A tag that no address selecting entry `i` comes within a page of.
#[inline(always)]
fn invalid_tag(i: usize) -> u64 {
    ((i ^ (ENTRIES / 2)) as u64) << 12
}

fn empty_entry(i: usize) -> Entry {
    Entry { read: invalid_tag(i), write: invalid_tag(i), host: std::ptr::null_mut(), frame: 0 }
}

/// No canonical address under any salt: bit 63 is set and bit 47, which no salt changes, is not.
const NO_JUMP: Jump = Jump { linear: 1 << 63, target: std::ptr::null() };
/// Salts are bits 62:48.
const SALT_STEP: u64 = 1 << 48;
const SALT_MASK: u64 = 0x7fff << 48;

/// Size of the page that a translation comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd)]
pub(crate) enum PageSize {
    Small,
    Large,
    Huge,
}

impl Context {
    /// An empty context, made where it will stay: it is too large to pass by the stack.
    fn new() -> Box<Self> {
        let layout = Layout::new::<Self>();
        // SAFETY: the layout's size is not 0.
        let place: *mut Self = unsafe { std::alloc::alloc_zeroed(layout) }.cast();
        if place.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // SAFETY: the allocation has this type's layout, and all zero is a value of each of its fields: numbers, `false`
        // and null pointers.
        let mut context = unsafe { Box::from_raw(place) };
        for (i, entry) in context.entries.iter_mut().enumerate() {
            *entry = empty_entry(i);
        }
        context.jumps.fill(NO_JUMP);
        context
    }

    /// Drops every translation.
    pub fn clear(&mut self) {
        for i in std::mem::replace(&mut self.filled, Slots::NONE).iter() {
            self.entries[i] = empty_entry(i);
        }
        self.large = [0; 16];
        self.has_1g = false;
        self.forget_jumps();
    }

    /// Drops every translation that is not global.
    pub fn clear_non_global(&mut self) {
        for i in self.filled.iter() {
            if self.entries[i].frame & GLOBAL == 0 {
                self.entries[i] = empty_entry(i);
                self.filled.remove(i);
            }
        }
        self.forget_jumps();
    }

    /// Drops every branch target. Bits 63:47 of a canonical address are alike, so those of two salts never meet.
    pub fn forget_jumps(&mut self) {
        self.code = Slots::NONE;
        self.salt = self.salt.wrapping_add(SALT_STEP) & SALT_MASK;
        if self.salt == 0 {
            self.jumps.fill(NO_JUMP);
        }
    }

    /// Puts a branch target into the jump cache.
    pub fn remember(&mut self, linear: u64, target: *const Op) {
        self.code.insert(index(linear));
        self.jumps[Self::jump_index(linear)] = Jump { linear: linear ^ self.salt, target };
    }

    fn large_bit(linear: u64) -> (usize, u64) {
        let region = (linear >> 21) as usize & 1023;
        (region / 64, 1 << (region % 64))
    }

    /// Notes that the entry of `linear` is in use, and whether it is a fragment of a larger page.
    pub fn note_size(&mut self, linear: u64, size: PageSize) {
        self.filled.insert(index(linear));
        if size != PageSize::Small {
            let (word, bit) = Self::large_bit(linear);
            self.large[word] |= bit;
            self.has_1g |= size == PageSize::Huge;
        }
    }

    /// Drops the translation of one page, global or not as `which` says.
    pub fn drop_page(&mut self, linear: u64, which: fn(&Entry) -> bool) {
        let page = linear & !0xfff;
        let (word, bit) = Self::large_bit(linear);
        let span = match (self.has_1g, self.large[word] & bit != 0) {
            (true, _) => !0x3fff_ffff,
            (false, true) => !0x1f_ffff,
            (false, false) => {
                let i = index(page);
                let entry = &self.entries[i];
                if (entry.read == page || entry.write == page) && which(entry) {
                    self.entries[i] = empty_entry(i);
                }
                if self.code.contains(i) {
                    self.forget_jumps();
                }
                return;
            }
        };
        for i in self.filled.iter() {
            let entry = &self.entries[i];
            let inside = entry.read & span == page & span || entry.write & span == page & span;
            if inside && which(entry) {
                self.entries[i] = empty_entry(i);
                self.filled.remove(i);
            }
        }
        self.forget_jumps();
    }

    /// Takes back every permission to write without a look at the frame's flags.
    pub fn drop_writes_to(&mut self, frame: u64) {
        for i in self.filled.iter() {
            if self.entries[i].frame & !0xfff == frame {
                self.entries[i].write = invalid_tag(i);
            }
        }
    }

    /// Takes back the tags of one entry, as SMAP does when it is no longer suspended.
    pub fn drop_index(&mut self, i: usize) {
        self.entries[i] = empty_entry(i);
    }

    /// The jump-cache slot of a linear address.
    #[inline(always)]
    pub fn jump_index(linear: u64) -> usize {
        (linear ^ (linear >> 10)) as usize & (JUMPS - 1)
    }
}

/// The pool of contexts. A context's address is fixed while the pool lives.
pub(crate) struct Pool {
    contexts: Vec<Box<Context>>,
    clock: u64,
}

impl Pool {
    pub fn new() -> Self {
        Self { contexts: Vec::with_capacity(CONTEXTS), clock: 0 }
    }

    /// The context for a key: an existing one, or the least recently used one, emptied.
    pub fn select(&mut self, key: Key) -> *mut Context {
        self.clock += 1;
        let clock = self.clock;
        if let Some(context) = self.contexts.iter_mut().find(|context| context.in_use && context.key == key) {
            context.used = clock;
            return &raw mut **context;
        }
        if self.contexts.len() < CONTEXTS {
            self.contexts.push(Context::new());
        }
        let oldest =
            self.contexts.iter_mut().min_by_key(|context| context.used).expect("the pool is not empty");
        if oldest.in_use {
            oldest.clear();
        }
        (oldest.key, oldest.used, oldest.in_use) = (key, clock, true);
        &raw mut **oldest
    }

    /// Applies `change` to each context in use that `which` selects.
    pub fn each(&mut self, which: impl Fn(&Key) -> bool, mut change: impl FnMut(&mut Context)) {
        for context in &mut self.contexts {
            if context.in_use && which(&context.key) {
                change(context);
            }
        }
    }
}
