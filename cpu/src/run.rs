//! The run loop: finds blocks, runs them, and looks at what stopped them.

use crate::block::{self, MAX_BLOCK, Op};
use crate::decode;
use crate::mmu::memory::{HAS_CODE, WRITABLE};
use crate::mmu::tlb::{self, EXECUTABLE};
use crate::mmu::{Fault, Kind, Privilege};
use crate::state::{BLOCK_RIP, Cpu, Stop};
use std::sync::atomic::Ordering;
use vmcs12::addr::Pa;
use vmcs12::arch::event::Exception;
use vmcs12::arch::rflags;
use vmcs12::exit::Cause;

/// Instructions that a block, and what it links to, may overshoot a check of the limit by.
const MARGIN: u64 = 2 * MAX_BLOCK as u64;

impl Cpu {
    /// Sets the number of instructions after which `enter` returns.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.hard_limit = limit;
        self.soft_limit = limit.saturating_sub(MARGIN);
    }

    /// Runs until a VM exit or the end of the budget.
    pub(crate) fn run(&mut self) -> Cause {
        loop {
            self.stop = Stop::Continue;
            if self.retired >= self.hard_limit {
                return self.end_of_budget();
            }
            if (self.attention || self.pending_debug != 0)
                && let Some(cause) = self.at_boundary()
            {
                return cause;
            }
            if self.retired >= self.soft_limit || self.needs_stepping() {
                if let Some(cause) = self.run_precisely() {
                    return cause;
                }
            } else {
                let target = self.target(self.rip);
                self.run_chain(target);
            }
            match self.stop {
                Stop::Continue => {}
                Stop::Exit(cause) => return cause,
                Stop::Fault(fault) => {
                    if let Some(cause) = self.take_fault(fault).or_else(|| self.trap_after_delivery()) {
                        return cause;
                    }
                }
            }
        }
    }

    /// Must the next instruction run alone?
    fn needs_stepping(&self) -> bool {
        self.rflags & rflags::TF != 0
            || self.has_code_breakpoints()
            || self.controls.monitor_trap
            || (self.controls.windows
                && (self.sti_shadow == self.retired || self.mov_ss_shadow == self.retired))
            || self.pending_debug != 0
    }

    fn run_chain(&mut self, target: *const Op) {
        let mut op = target;
        while !op.is_null() {
            // SAFETY: `op` is the first operation of a live block or what a handler returned to go on with.
            op = unsafe { ((*op).run)(self, op) };
        }
    }

    /// Runs up to the limit exactly, or one instruction while stepping.
    fn run_precisely(&mut self) -> Option<Cause> {
        let most =
            if self.needs_stepping() { 1 } else { (self.hard_limit - self.retired).min(MAX_BLOCK as u64) };
        let mut scratch = Vec::with_capacity(MAX_BLOCK + 1);
        self.decode_at(self.rip, most as usize, &mut scratch)?;
        let soft_limit = std::mem::replace(&mut self.soft_limit, 0);
        let stepping = most == 1 && self.needs_stepping();
        let (retired, traps) = (self.retired, stepping && self.rflags & rflags::TF != 0);
        self.rep_limit = self.hard_limit;
        if stepping {
            self.rep_limit = retired + 1;
        }
        let rip = self.rip;
        self.gpr[BLOCK_RIP] = rip;
        self.run_chain(scratch.as_ptr());
        self.soft_limit = soft_limit;
        self.rep_limit = soft_limit;
        if traps && self.retired > retired && self.stop == Stop::Continue {
            let sequential =
                scratch.first().map_or(rip, |op| rip.wrapping_add(u64::from(op.len)) & self.ip_mask);
            self.single_step_trap(sequential);
        }
        if stepping && self.stop == Stop::Continue {
            if self.retired > retired {
                self.after_step();
            }
            return self.controls.monitor_trap.then(|| self.monitor_trap_exit());
        }
        None
    }

    /// The block at `rip`, decoded if need be, and put in the jump cache; null with `stop` set if it cannot be fetched.
    #[cold]
    #[inline(never)]
    pub(crate) fn find(&mut self, rip: u64) -> *const Op {
        self.rip = rip;
        let linear = self.code_linear(rip);
        self.gpr[BLOCK_RIP] = rip;
        match self.fetch_block(rip, linear) {
            Some(target) => {
                // SAFETY: as above.
                unsafe { (*self.context).remember(linear, target) };
                target
            }
            None => std::ptr::null(),
        }
    }

    /// Linear address of an instruction pointer.
    #[inline(always)]
    pub(crate) fn code_linear(&self, rip: u64) -> u64 {
        if self.is_64() { rip } else { self.segments[1].base.wrapping_add(rip) & 0xffff_ffff }
    }

    fn fetch_block(&mut self, rip: u64, linear: u64) -> Option<*const Op> {
        let pa = self.fetch_page(linear)? | (linear & 0xfff);
        if let Some(target) = self.blocks.get(block::key(pa, self.code_size as u8, 0)) {
            return Some(target);
        }
        if self.blocks.is_full() {
            self.blocks.clear();
            self.pool.each(|_| true, tlb::Context::forget_jumps);
        }
        let mut ops = Vec::with_capacity(MAX_BLOCK + 1);
        let bytes = self.decode_at(rip, MAX_BLOCK, &mut ops)?;
        let spans = (pa & 0xfff) + bytes > 4096;
        let second = if spans { Some(self.fetch_page((linear & !0xfff).wrapping_add(4096))?) } else { None };
        let key = block::key(pa, self.code_size as u8, second.map_or(0, |frame| frame | 1));
        if spans && let Some(target) = self.blocks.get(key) {
            return Some(target);
        }
        self.protect_code(pa);
        if let Some(second) = second {
            self.protect_code(second);
        }
        Some(self.blocks.insert(key, &ops, pa, bytes, second))
    }

    /// From now on stores to this page are seen.
    fn protect_code(&mut self, pa: u64) {
        let Some(frame) = self.memory.frame(Pa(pa)) else { return };
        let before = frame.flags.fetch_or(HAS_CODE, Ordering::Relaxed);
        if before & WRITABLE != 0 {
            frame.flags.fetch_and(!WRITABLE, Ordering::Relaxed);
            self.pool.each(|_| true, |context| context.drop_writes_to(pa & !0xfff));
        }
    }

    /// Machine-physical page of an instruction fetch.
    fn fetch_page(&mut self, linear: u64) -> Option<u64> {
        let page = linear & !0xfff;
        // SAFETY: `context` points to a context of `pool`, which lives as long as `self`.
        let entry = unsafe { &(*self.context).entries[tlb::index(linear)] };
        if entry.read == page && entry.frame & EXECUTABLE != 0 {
            return Some(entry.frame & !0xfff);
        }
        if self.is_64() && !crate::mmu::access::is_canonical(linear) {
            return self.fail(Exception::gp(0));
        }
        let privilege = if self.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        match self.resolve(linear, 1, Kind::Fetch, privilege) {
            Ok(pieces) => Some(pieces[0].page()),
            Err(fault) => self.fail(fault),
        }
    }

    /// Decodes at most `most` instructions at `rip`; returns the length of their bytes.
    fn decode_at(&mut self, rip: u64, most: usize, ops: &mut Vec<Op>) -> Option<u64> {
        if !self.is_64() && rip > u64::from(self.segments[1].limit) {
            return self.fail(Exception::gp(0));
        }
        let linear = self.code_linear(rip);
        let pa = self.fetch_page(linear)? | (linear & 0xfff);
        let Some(frame) = self.memory.frame(Pa(pa)) else {
            return self.decode_hole(rip, ops);
        };
        let offset = (pa & 0xfff) as usize;
        let mut page = [0u8; 4096];
        // SAFETY: the frame is a mapped page; a racing store gives old or new bytes, as on hardware.
        unsafe { std::ptr::copy_nonoverlapping(frame.host.add(offset), page.as_mut_ptr(), 4096 - offset) };
        match decode::block(self, rip, &page[..4096 - offset], most, ops) {
            Some(bytes) => Some(bytes),
            None => {
                // The first instruction spans into the next page.
                let mut bytes = [0u8; 16];
                let first = 4096 - offset;
                bytes[..first].copy_from_slice(&page[..first]);
                let next = self.fetch_page((linear & !0xfff).wrapping_add(4096))?;
                let rest = 15usize.saturating_sub(first);
                match self.memory.frame(Pa(next)) {
                    // SAFETY: as above.
                    Some(frame) => unsafe {
                        std::ptr::copy_nonoverlapping(frame.host, bytes[first..].as_mut_ptr(), rest);
                    },
                    None => bytes[first..].fill(0xff),
                }
                ops.clear();
                decode::block(self, rip, &bytes[..(first + rest).min(15)], 1, ops)
                    .or_else(|| self.fail(Exception::gp(0)))
            }
        }
    }

    /// Nothing backs the page: all ones, which is no instruction.
    fn decode_hole(&mut self, rip: u64, ops: &mut Vec<Op>) -> Option<u64> {
        decode::block(self, rip, &[0xff; 15], 1, ops)
    }

    /// The instruction at RIP faulted: deliver, or exit.
    fn take_fault(&mut self, fault: Fault) -> Option<Cause> {
        match fault {
            Fault::Exception(exception) => self.raise_exception(exception),
            Fault::EptViolation { .. } | Fault::EptMisconfiguration { .. } => {
                let cause = self.exit_ept(fault);
                self.record_nmi_unblocking(fault);
                Some(cause)
            }
        }
    }
}
