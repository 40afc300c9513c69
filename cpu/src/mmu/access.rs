//! Loads and stores: the inline look-up, and what happens when it misses.

use super::paging::Translation;
use super::tlb::{self, Context, EXECUTABLE, GLOBAL, USER};
use super::{Fault, Kind, Privilege};
use crate::block::Op;
use crate::mmu::memory::{HAS_CODE, WRITABLE};
use crate::state::Cpu;
use std::sync::atomic::Ordering;
use vmcs12::addr::Pa;
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::SegmentRegister;

/// A memory operand's integer type.
pub(crate) trait Scalar: Copy + 'static {
    const SIZE: usize;
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
}

macro_rules! scalar {
    ($($t:ty)*) => { $(impl Scalar for $t {
        const SIZE: usize = size_of::<$t>();
        #[inline(always)]
        fn from_u64(value: u64) -> Self { value as $t }
        #[inline(always)]
        fn to_u64(self) -> u64 { u64::from(self) }
    })* };
}
scalar!(u8 u16 u32 u64);

/// User pages that a supervisor context holds at a time while EFLAGS.AC suspends SMAP.
const SUSPENDED: usize = 16;

/// Part of an access that lies in one page.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// Where the bytes are in this process; null for a hole.
    host: *mut u8,
    pa: u64,
    len: usize,
}

/// Is an address canonical for 4-level paging?
#[inline(always)]
pub(crate) fn is_canonical(linear: u64) -> bool {
    ((linear << 16) as i64 >> 16) as u64 == linear
}

impl Piece {
    /// The machine-physical page.
    pub fn page(&self) -> u64 {
        self.pa & !0xfff
    }
}

impl Cpu {
    #[inline(always)]
    fn entry(&self, linear: u64) -> &tlb::Entry {
        // SAFETY: `context` points to a context of `pool`, which lives as long as `self`; contexts never move.
        unsafe { &(*self.context).entries[tlb::index(linear)] }
    }

    /// Reads a value at a linear address. `None`: `stop` holds the fault.
    #[inline(always)]
    pub(crate) fn load<T: Scalar>(&mut self, op: &Op, linear: u64) -> Option<T> {
        let entry = self.entry(linear);
        let offset = linear.wrapping_sub(entry.read);
        if offset <= (4096 - T::SIZE) as u64 {
            // SAFETY: a read tag that matches belongs to an entry whose `host` is a mapped page (`fill`), and the
            // whole value lies in it.
            return Some(unsafe { entry.host.add(offset as usize).cast::<T>().read_unaligned() });
        }
        self.load_slow(op, linear, T::SIZE).map(T::from_u64)
    }

    /// Reads a value at a linear address, if no check is left.
    #[inline(always)]
    pub(crate) fn load_quick<T: Scalar>(&mut self, linear: u64) -> Option<T> {
        let entry = self.entry(linear);
        let offset = linear.wrapping_sub(entry.read);
        // SAFETY: as in `load`.
        (offset <= (4096 - T::SIZE) as u64)
            .then(|| unsafe { entry.host.add(offset as usize).cast::<T>().read_unaligned() })
    }

    /// Writes a value at a linear address. `None`: `stop` holds the fault, nothing was written.
    #[inline(always)]
    pub(crate) fn store<T: Scalar>(&mut self, op: &Op, linear: u64, value: T) -> Option<()> {
        let entry = self.entry(linear);
        let offset = linear.wrapping_sub(entry.write);
        if offset <= (4096 - T::SIZE) as u64 {
            // SAFETY: a write tag that matches belongs to an entry whose `host` is a mapped page (`fill`).
            unsafe { entry.host.add(offset as usize).cast::<T>().write_unaligned(value) };
            return Some(());
        }
        self.store_slow(op, linear, T::SIZE, value.to_u64())
    }

    /// Where a value that may be read and written without further checks is in this process.
    #[inline(always)]
    pub(crate) fn writable_host<T: Scalar>(&mut self, linear: u64) -> Option<*mut T> {
        let entry = self.entry(linear);
        let offset = linear.wrapping_sub(entry.write);
        (offset <= (4096 - T::SIZE) as u64).then(|| entry.host.wrapping_add(offset as usize).cast())
    }

    /// Where a byte that may be read without further checks is in this process.
    #[inline(always)]
    pub(crate) fn readable_host(&self, linear: u64) -> Option<*const u8> {
        let entry = self.entry(linear);
        let offset = linear.wrapping_sub(entry.read);
        (offset < 4096).then(|| entry.host.wrapping_add(offset as usize).cast_const())
    }

    /// Where a byte that may be read (written) is in this process, by the TLB or by a walk, for accesses that stay in
    /// its page. `None`: it takes the slow path, or faults there; what faulted here is not recorded.
    pub(crate) fn string_place(&mut self, linear: u64, kind: Kind) -> Option<*mut u8> {
        let quick = match kind {
            Kind::Write => self.writable_host::<u8>(linear),
            Kind::Read | Kind::Fetch => self.readable_host(linear).map(<*const u8>::cast_mut),
        };
        if quick.is_some() || self.checks_each_access() || !is_canonical(linear) {
            return quick;
        }
        let privilege = if self.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        let [piece, _] = self.resolve(linear, 1, kind, privilege).ok()?;
        let flags = self.memory.frame(Pa(piece.pa))?.flags.load(Ordering::Relaxed);
        (kind != Kind::Write || flags & HAS_CODE == 0).then_some(piece.host)
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, op: &Op, linear: u64, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read_bytes(op, linear, &mut bytes[..size])?;
        Some(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, op: &Op, linear: u64, size: usize, value: u64) -> Option<()> {
        self.write_bytes(op, linear, &value.to_le_bytes()[..size])
    }

    /// Reads bytes as one access of the instruction.
    pub(crate) fn read_bytes(&mut self, op: &Op, linear: u64, into: &mut [u8]) -> Option<()> {
        let pieces = self.operand(op, linear, into.len(), Kind::Read)?;
        self.read_pieces(&pieces, into);
        Some(())
    }

    /// Writes bytes as one access of the instruction; on a fault nothing is written.
    pub(crate) fn write_bytes(&mut self, op: &Op, linear: u64, bytes: &[u8]) -> Option<()> {
        let pieces = self.operand(op, linear, bytes.len(), Kind::Write)?;
        self.write_pieces(&pieces, bytes);
        Some(())
    }

    /// Checks that bytes may be written, without writing.
    pub(crate) fn probe_write(&mut self, op: &Op, linear: u64, len: usize) -> Option<()> {
        self.operand(op, linear, len, Kind::Write).map(|_| ())
    }

    fn operand(&mut self, op: &Op, linear: u64, len: usize, kind: Kind) -> Option<[Piece; 2]> {
        if let Err(fault) = self.check_operand(op, linear, len) {
            return self.fail(fault);
        }
        let privilege = if self.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        match self.resolve(linear, len, kind, privilege) {
            Ok(pieces) => {
                if self.has_data_breakpoints() {
                    self.match_data_breakpoints(linear, len, kind);
                }
                Some(pieces)
            }
            Err(fault) => self.fail(fault),
        }
    }

    /// Canonical form and alignment. SDM Vol. 3, "Canonical Addressing", "Alignment Check Exception".
    fn check_operand(&self, op: &Op, linear: u64, len: usize) -> Result<(), Fault> {
        if self.is_64() && !(is_canonical(linear) && is_canonical(linear.wrapping_add(len as u64 - 1))) {
            let stack = op.segment == SegmentRegister::Ss as u8;
            return Err(if stack { Exception::ss(0) } else { Exception::gp(0) }.into());
        }
        if self.alignment_checked() && len <= 8 && len.is_power_of_two() && linear & (len as u64 - 1) != 0 {
            return Err(Exception::ac().into());
        }
        Ok(())
    }

    /// Records a fault of the current instruction.
    #[cold]
    pub(crate) fn fail<T>(&mut self, fault: impl Into<Fault>) -> Option<T> {
        self.stop = crate::state::Stop::Fault(fault.into());
        None
    }

    /// Translates every page of an access before any byte is touched.
    pub(crate) fn resolve(
        &mut self,
        linear: u64,
        len: usize,
        kind: Kind,
        privilege: Privilege,
    ) -> Result<[Piece; 2], Fault> {
        let first_len = len.min(4096 - (linear & 0xfff) as usize);
        let first = self.piece(linear, first_len, kind, privilege)?;
        let rest = len - first_len;
        if rest == 0 {
            return Ok([first, Piece { host: std::ptr::null_mut(), pa: 0, len: 0 }]);
        }
        // A 64-bit handler's stack and the descriptor tables are beyond 4 GiB even for an instruction that is not.
        let wide = self.is_64() || (self.long_mode() && linear > 0xffff_ffff);
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        let second = self.piece(linear.wrapping_add(first_len as u64) & mask, rest, kind, privilege)?;
        Ok([first, second])
    }

    fn piece(&mut self, linear: u64, len: usize, kind: Kind, privilege: Privilege) -> Result<Piece, Fault> {
        let translation = self.walk(linear, kind, privilege)?;
        let offset = linear & 0xfff;
        let pa = translation.pa | offset;
        self.fill(linear, &translation, kind, privilege);
        let host = self.memory.frame(Pa(pa)).map_or(std::ptr::null_mut(), |frame| frame.host);
        let host = if host.is_null() { host } else { host.wrapping_add(offset as usize) };
        Ok(Piece { host, pa, len })
    }

    /// Installs a translation for the next access, as far as none of its checks must be repeated.
    fn fill(&mut self, linear: u64, translation: &Translation, kind: Kind, privilege: Privilege) {
        let own = match privilege {
            Privilege::User => self.cpl == 3,
            Privilege::Supervisor => self.cpl != 3,
            Privilege::Implicit => false,
        };
        if self.smap_suspended.len() == SUSPENDED {
            self.end_smap_suspension();
        }
        let Some(frame) = self.memory.frame(Pa(translation.pa)) else { return };
        if !own || self.checks_each_access() {
            return;
        }
        let suspended = translation.user
            && self.cpl != 3
            && self.cr4 & cr4::SMAP != 0
            && self.cr0 & vmcs12::arch::cr::cr0::PG != 0;
        if suspended && kind == Kind::Fetch {
            return;
        }
        let page = linear & !0xfff;
        let i = tlb::index(linear);
        let has_code = frame.flags.load(Ordering::Relaxed) & HAS_CODE != 0;
        let writable = translation.writable && !has_code;
        if writable {
            frame.flags.fetch_or(WRITABLE, Ordering::Relaxed);
        }
        let host = frame.host;
        // SAFETY: `context` points to a context of `pool`, which lives as long as `self`; nothing else refers to it.
        let context: &mut Context = unsafe { &mut *self.context };
        context.drop_index(i);
        context.note_size(linear, translation.size);
        let entry = &mut context.entries[i];
        // An execute-only page is not readable.
        if translation.readable {
            entry.read = page;
        }
        if writable {
            entry.write = page;
        }
        entry.host = host;
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        entry.frame = translation.pa
            | flag(translation.executable, EXECUTABLE)
            | flag(translation.global, GLOBAL)
            | flag(suspended, USER);
        if suspended {
            self.smap_suspended.push(i);
            debug_assert!(self.smap_suspended.len() <= SUSPENDED);
        }
    }

    pub(crate) fn read_pieces(&mut self, pieces: &[Piece; 2], into: &mut [u8]) {
        let (first, second) = into.split_at_mut(pieces[0].len);
        for (piece, into) in pieces.iter().zip([first, second]) {
            if !piece.host.is_null() {
                // SAFETY: `piece` made `host` point to `len` bytes of one mapped page; guest memory is only ever
                // accessed by raw copies.
                unsafe { std::ptr::copy_nonoverlapping(piece.host, into.as_mut_ptr(), into.len()) };
            } else if !into.is_empty() {
                self.read_hole(piece.pa, into);
            }
        }
    }

    pub(crate) fn write_pieces(&mut self, pieces: &[Piece; 2], bytes: &[u8]) {
        let (first, second) = bytes.split_at(pieces[0].len);
        for (piece, bytes) in pieces.iter().zip([first, second]) {
            if !piece.host.is_null() {
                // SAFETY: `piece` made `host` point to `len` bytes of one mapped page.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.host, bytes.len()) };
                self.note_store(piece.pa, bytes.len());
            } else if !bytes.is_empty() {
                self.write_hole(piece.pa, bytes);
            }
        }
    }

    /// Drops the blocks that a store has changed.
    pub(crate) fn note_store(&mut self, pa: u64, len: usize) {
        let frame = self.memory.frame(Pa(pa)).expect("only backed pages are stored to");
        if frame.flags.load(Ordering::Relaxed) & HAS_CODE != 0 && self.blocks.written(pa, len) {
            frame.flags.fetch_and(!HAS_CODE, Ordering::Relaxed);
        }
    }

    /// The hole that the bus has for a guest-physical address that EPT does not map.
    #[cold]
    pub(crate) fn hole(&self, gpa: u64) -> Option<Pa> {
        // SAFETY: `bus` is set only while `complete` runs, which holds the reference that it was made from.
        let hole = self.bus.and_then(|bus| unsafe { (*bus).hole(gpa) });
        hole.filter(|hole| self.memory.frame(*hole).is_none())
    }

    fn read_hole(&mut self, pa: u64, into: &mut [u8]) {
        match self.bus {
            // SAFETY: `bus` is set only while `complete` runs, which holds the reference that it was made from.
            Some(bus) if into.len() <= 8 => unsafe {
                let value = (*bus).read(Pa(pa), into.len()).to_le_bytes();
                into.copy_from_slice(&value[..into.len()]);
            },
            _ => into.fill(0xff),
        }
    }

    fn write_hole(&mut self, pa: u64, bytes: &[u8]) {
        if let Some(bus) = self.bus
            && bytes.len() <= 8
        {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            // SAFETY: `bus` is set only while `complete` runs, which holds the reference that it was made from.
            unsafe { (*bus).write(Pa(pa), bytes.len(), u64::from_le_bytes(value)) };
        }
    }

    /// Reads a system structure (descriptor, gate, TSS).
    pub(crate) fn read_system<const N: usize>(&mut self, linear: u64) -> Result<[u8; N], Fault> {
        let linear = if self.long_mode() { linear } else { linear & 0xffff_ffff };
        if self.long_mode() && !is_canonical(linear) {
            return Err(Exception::gp(0).into());
        }
        let mut bytes = [0; N];
        if self.cpl != 3 {
            let entry = self.entry(linear);
            let offset = linear.wrapping_sub(entry.read);
            if offset <= (4096 - N) as u64 && entry.frame & USER == 0 {
                // SAFETY: a read tag that matches belongs to an entry whose `host` is a mapped page (`fill`).
                unsafe {
                    std::ptr::copy_nonoverlapping(entry.host.add(offset as usize), bytes.as_mut_ptr(), N);
                }
                return Ok(bytes);
            }
        }
        let pieces = self.resolve(linear, N, Kind::Read, Privilege::Implicit)?;
        self.read_pieces(&pieces, &mut bytes);
        Ok(bytes)
    }

    /// Writes to a system structure.
    pub(crate) fn write_system(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Fault> {
        let linear = if self.long_mode() { linear } else { linear & 0xffff_ffff };
        let pieces = self.resolve(linear, bytes.len(), Kind::Write, Privilege::Implicit)?;
        self.write_pieces(&pieces, bytes);
        Ok(())
    }

    /// Debug registers: notes a data breakpoint that an access matches. SDM Vol. 3, "Breakpoint Field Recognition".
    fn match_data_breakpoints(&mut self, linear: u64, len: usize, kind: Kind) {
        for i in 0..4 {
            let (enabled, rw) = (self.dr7 >> (2 * i) & 3 != 0, self.dr7 >> (16 + 4 * i) & 3);
            let size = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * i) & 3) as usize];
            // SAFETY: `state` is valid while guest code runs.
            let at = unsafe { (*self.state).dr[i as usize] } & !(size - 1);
            let wanted = rw == 3 || (rw == 1 && kind == Kind::Write);
            let end = linear.wrapping_add(len as u64);
            if enabled && wanted && linear < at.wrapping_add(size) && at < end {
                self.pending_debug |= 1 << i;
                self.attention = true;
            }
        }
    }
}
