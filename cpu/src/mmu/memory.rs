//! Machine-physical memory as the processor sees it: `ram` and the arena, with what it knows of each frame.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use vmcs12::addr::{Pa, Physical};

/// A mapped range of machine-physical memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Where it begins; page-aligned.
    pub base: Pa,
    /// Its length in bytes; whole pages.
    pub len: u64,
    /// Where it is in this process.
    pub host: NonNull<u8>,
}

/// The frame has instructions in a block cache.
pub(crate) const HAS_CODE: u8 = 1 << 0;
/// A translation of the frame has been handed out for writing since the last sweep of the write tags.
pub(crate) const WRITABLE: u8 = 1 << 1;
/// Somebody outside the processor wrote to a frame with code.
pub(crate) const CODE_WRITTEN: u8 = 1 << 2;

struct Mapped {
    region: Region,
    frames: Box<[AtomicU8]>,
}

struct Inner {
    regions: Vec<Mapped>,
    code_written: AtomicBool,
}

// SAFETY: the regions are plain memory that several threads may access; every access through this type is
// atomic or volatile, and `Memory::new` has its caller keep the mappings alive.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A handle to machine-physical memory; clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

/// A frame that is backed by memory.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// Where the 4-KiB page is in this process.
    pub host: *mut u8,
    /// What is known of it.
    pub flags: &'a AtomicU8,
}

impl Memory {
    /// Memory over these regions.
    ///
    /// # Safety
    /// Each region is mapped readable and writable at `host` until the last clone of the handle is dropped.
    ///
    /// # Panics
    /// If a region is not made of whole pages.
    pub unsafe fn new(regions: Vec<Region>) -> Self {
        let mapped = |region: Region| {
            assert!(region.base.offset() == 0 && region.len & 0xfff == 0, "regions are whole pages");
            let frames = (0..region.len >> 12).map(|_| AtomicU8::new(0)).collect();
            Mapped { region, frames }
        };
        let regions = regions.into_iter().map(mapped).collect();
        Self(Arc::new(Inner { regions, code_written: AtomicBool::new(false) }))
    }

    /// The frame of a page, if memory backs it.
    #[inline(always)]
    pub(crate) fn frame(&self, page: Pa) -> Option<Frame<'_>> {
        self.0.regions.iter().find_map(|mapped| {
            let offset = page.0.wrapping_sub(mapped.region.base.0);
            (offset < mapped.region.len).then(|| Frame {
                host: mapped.region.host.as_ptr().wrapping_add((offset & !0xfff) as usize),
                flags: &mapped.frames[(offset >> 12) as usize],
            })
        })
    }

    #[inline(always)]
    fn host_of(&self, at: Pa) -> Option<*mut u8> {
        self.frame(at).map(|frame| frame.host.wrapping_add(at.offset() as usize))
    }

    fn note_write(&self, frame: Frame<'_>) {
        if frame.flags.load(Ordering::Relaxed) & HAS_CODE != 0 {
            frame.flags.fetch_or(CODE_WRITTEN, Ordering::Relaxed);
            self.0.code_written.store(true, Ordering::Release);
        }
    }

    /// Frames with code that were written from outside the processor since the last call.
    pub(crate) fn take_written_code(&self) -> Vec<Pa> {
        if !self.0.code_written.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        let mut pages = Vec::new();
        for mapped in &self.0.regions {
            for (index, flags) in mapped.frames.iter().enumerate() {
                if flags.load(Ordering::Relaxed) & CODE_WRITTEN != 0 {
                    flags.fetch_and(!CODE_WRITTEN, Ordering::Relaxed);
                    pages.push(mapped.region.base.plus((index as u64) << 12));
                }
            }
        }
        pages
    }

    fn entry(&self, at: Pa) -> Option<&AtomicU64> {
        let host = self.host_of(Pa(at.0 & !7))?;
        // SAFETY: the frame is mapped while `self` lives (`Memory::new`), and the address is 8-byte aligned.
        Some(unsafe { AtomicU64::from_ptr(host.cast()) })
    }
}

/// Splits `len` bytes from `at` into pieces that stay within a page: (address, range of the buffer).
fn pieces(at: Pa, len: usize) -> impl Iterator<Item = (Pa, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let from = at.plus(done as u64);
        let n = (4096 - from.offset() as usize).min(len - done);
        done += n;
        Some((from, done - n..done))
    })
}

impl Physical for Memory {
    fn read(&self, from: Pa, into: &mut [u8]) {
        for (at, range) in pieces(from, into.len()) {
            let into = &mut into[range];
            match self.host_of(at) {
                // SAFETY: the piece lies in one mapped page (`pieces`, `Memory::new`); a racing guest write may tear
                // it, which the caller expects of guest memory.
                Some(host) => unsafe { std::ptr::copy_nonoverlapping(host, into.as_mut_ptr(), into.len()) },
                None => into.fill(0xff),
            }
        }
    }

    fn write(&self, to: Pa, bytes: &[u8]) {
        for (at, range) in pieces(to, bytes.len()) {
            let Some(frame) = self.frame(at) else { continue };
            let bytes = &bytes[range];
            let host = frame.host.wrapping_add(at.offset() as usize);
            // SAFETY: the piece lies in one mapped page (`pieces`, `Memory::new`).
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) };
            self.note_write(frame);
        }
    }

    #[inline(always)]
    fn read_u64(&self, from: Pa) -> u64 {
        self.entry(from).map_or(u64::MAX, |entry| entry.load(Ordering::Relaxed))
    }

    fn write_u64(&self, to: Pa, value: u64) {
        if let Some(entry) = self.entry(to) {
            entry.store(value, Ordering::Relaxed);
            self.note_write(self.frame(to).expect("an entry lies in a frame"));
        }
    }

    fn compare_exchange_u64(&self, at: Pa, old: u64, new: u64) -> u64 {
        let Some(entry) = self.entry(at) else { return u64::MAX };
        match entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(was) => {
                self.note_write(self.frame(at).expect("an entry lies in a frame"));
                was
            }
            Err(was) => was,
        }
    }

    #[inline(always)]
    fn is_backed(&self, page: Pa) -> bool {
        self.frame(page).is_some()
    }
}
