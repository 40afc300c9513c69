//! Instructions about the processor itself: identification, time, waiting, caches, random numbers, XCR0 and PKRU.
//! SDM Vol. 2, each instruction; Vol. 3, "Instructions That Cause VM Exits", "Changes to Instruction Behavior in VMX
//! Non-Root Operation".

use super::{
    End, Flow, Step, done, exit, finish, general_protection, handler, qualified_exit, register_number,
    undefined,
};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::flags::Status;
use crate::interpret::{self, operand};
use crate::mmu::Kind;
use crate::state::{Cpu, Stop};
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::InjectedEvent;
use vmcs12::arch::rflags;
use vmcs12::arch::state::Activity;
use vmcs12::control::*;
use vmcs12::cpu_state::gpr::{RAX, RCX, RDX};
use vmcs12::exit::Reason;
use vmcs12::field::table::*;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    let ends = match d.inst.mnemonic() {
        Cpuid => handler!(cpuid),
        Hlt => hlt,
        Invd => handler!(invd),
        Getsec | Getsecq | Rsm => handler!(always_undefined),
        Monitor => handler!(monitor),
        Mwait => handler!(mwait),
        Pause => handler!(pause),
        Xsetbv => handler!(xsetbv),
        Wrpkru => handler!(wrpkru),
        _ => return select_inner(d, op),
    };
    Some(Selected::end(ends))
}

/// Instructions after which the block goes on.
fn select_inner(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    let inst = d.inst;
    Some(Selected::next(match inst.mnemonic() {
        Rdtsc => handler!(rdtsc),
        Rdtscp => handler!(rdtscp),
        Rdpmc => handler!(rdpmc),
        Rdpid | Rdrand | Rdseed => {
            op.src = register_offset(inst.op0_register());
            op.imm = inst.op0_register().size() as u64;
            match inst.mnemonic() {
                Rdpid => handler!(rdpid),
                Rdrand => handler!(random::<RDRAND>),
                _ => handler!(random::<RDSEED>),
            }
        }
        Xgetbv => handler!(xgetbv),
        Rdpkru => handler!(rdpkru),
        Wbinvd => handler!(write_back::<WBINVD>),
        Wbnoinvd => handler!(write_back::<WBNOINVD>),
        Clflush | Clflushopt | Clwb => handler!(flush_line),
        Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw | Prefetchwt1 | Prefetch => {
            interpret::nop
        }
        Lfence | Mfence | Sfence | Endbr32 | Endbr64 | Cldemote => interpret::nop,
        _ => return None,
    }))
}

fn always_undefined(_: &mut Cpu, _: &Op) -> Step {
    undefined()
}

fn cpuid(_: &mut Cpu, _: &Op) -> Step {
    exit(Reason::Cpuid)
}

fn invd(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_cpl_0()?;
    exit(Reason::Invd)
}

/// HLT without an exit: the activity state becomes HLT, and nothing runs until the VMM delivers an event.
unsafe fn hlt(cpu: &mut Cpu, op: *const Op) -> *const Op {
    let step = match cpu.require_cpl_0() {
        Ok(()) if cpu.controls.has(HLT_EXITING) => exit(Reason::Hlt),
        other => other.map(|()| Flow::Leave),
    };
    if step.is_err() {
        // SAFETY: handlers are called with a live operation.
        return unsafe { finish(cpu, op, step) };
    }
    cpu.leave_after(op);
    let cause = cpu.end_of_budget();
    let vmcs = cpu.vmcs();
    vmcs.set(GUEST_ACTIVITY_STATE, Activity::Hlt as u32);
    // What this entry injected has been delivered; it does not wake the processor again.
    let injected = vmcs.get(INJECTED_EVENT_IDENTIFICATION);
    vmcs.set(INJECTED_EVENT_IDENTIFICATION, injected.with(InjectedEvent::VALID, false));
    cpu.stop = Stop::Exit(cause);
    std::ptr::null()
}

fn monitor(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.cpl > 0 {
        return undefined();
    }
    if cpu.controls.has(MONITOR_EXITING) {
        return exit(Reason::Monitor);
    }
    if cpu.gpr[RCX] as u32 != 0 {
        return general_protection();
    }
    let offset = cpu.gpr[RAX] & operand::address_mask(op);
    let linear = done(cpu.segmented(op, op.segment, offset, 1, Kind::Read))?;
    done(cpu.load::<u8>(op, linear))?;
    cpu.monitor_armed = true;
    Ok(Flow::Leave)
}

/// MWAIT without an exit may end at any time: it ends at once.
fn mwait(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cpl > 0 {
        return undefined();
    }
    if cpu.controls.has(MWAIT_EXITING) {
        return qualified_exit(Reason::Mwait, u64::from(cpu.monitor_armed));
    }
    if cpu.gpr[RCX] as u32 & !1 != 0 {
        return general_protection();
    }
    cpu.monitor_armed = false;
    Ok(Flow::Leave)
}

fn pause(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.controls.has(PAUSE_EXITING) {
        return exit(Reason::Pause);
    }
    if cpu.controls.has(PAUSE_LOOP_EXITING) && cpu.cpl == 0 && loops_too_long(cpu, op) {
        return exit(Reason::Pause);
    }
    Ok(Flow::Leave)
}

/// SDM Vol. 3, "PAUSE-Loop Exiting Control Fields".
fn loops_too_long(cpu: &mut Cpu, op: &Op) -> bool {
    let now = cpu.hardware_tsc(op);
    let (first, last) = cpu.pause_loop;
    let (gap, window) = (u64::from(cpu.vmcs().get(PLE_GAP)), u64::from(cpu.vmcs().get(PLE_WINDOW)));
    let first = if now.wrapping_sub(last) > gap { now } else { first };
    cpu.pause_loop = (first, now);
    now.wrapping_sub(first) > window
}

impl Cpu {
    /// The TSC before this instruction, without an offset.
    fn hardware_tsc(&self, op: &Op) -> u64 {
        let now = u128::from(self.time.now_ns.wrapping_add(self.retired_before(op)));
        ((now * u128::from(self.time.tsc_mult_q32)) >> 32) as u64
    }

    /// The TSC that the guest sees. SDM Vol. 3, "Time-Stamp Counter Offset and Multiplier".
    pub(super) fn tsc(&mut self, op: &Op) -> u64 {
        let tsc = self.hardware_tsc(op);
        if !self.controls.has(USE_TSC_OFFSETTING) {
            return tsc;
        }
        let scaled = if self.controls.has(USE_TSC_SCALING) {
            ((u128::from(tsc) * u128::from(self.vmcs().get(TSC_MULTIPLIER))) >> 48) as u64
        } else {
            tsc
        };
        scaled.wrapping_add(self.vmcs().get(TSC_OFFSET))
    }
}

fn check_time(cpu: &Cpu, reason: Reason) -> Result<(), End> {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl > 0 {
        return general_protection();
    }
    if cpu.controls.has(RDTSC_EXITING) { exit(reason) } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu, op: &Op) -> Step {
    check_time(cpu, Reason::Rdtsc)?;
    let tsc = cpu.tsc(op);
    cpu.set_edx_eax(tsc);
    Ok(Flow::Next)
}

fn rdtscp(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.controls.has(ENABLE_RDTSCP) {
        return undefined();
    }
    check_time(cpu, Reason::Rdtscp)?;
    let tsc = cpu.tsc(op);
    cpu.set_edx_eax(tsc);
    cpu.gpr[RCX] = cpu.state().tsc_aux & 0xffff_ffff;
    Ok(Flow::Next)
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.controls.has(ENABLE_RDTSCP) {
        return undefined();
    }
    let value = cpu.state().tsc_aux & 0xffff_ffff;
    cpu.set_register_sized(op.src, op.imm, value);
    Ok(Flow::Next)
}

/// RDPMC: there are no performance counters.
fn rdpmc(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cpl > 0 && cpu.cr4 & cr4::PCE == 0 {
        return general_protection();
    }
    if cpu.controls.has(RDPMC_EXITING) { exit(Reason::Rdpmc) } else { general_protection() }
}

const RDRAND: bool = false;
const RDSEED: bool = true;

/// RDRAND and RDSEED: a generator with a seed, so that runs can be repeated. The finalizer is that of SplitMix64.
fn random<const SEED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let (control, reason) =
        if SEED { (RDSEED_EXITING, Reason::Rdseed) } else { (RDRAND_EXITING, Reason::Rdrand) };
    if cpu.controls.has(control) {
        let size = match op.imm {
            2 => 0,
            4 => 1,
            _ => 2,
        };
        let information = register_number(op.src) << 3 | size << 11;
        return Err(End::Exit { reason, qualification: 0, information });
    }
    let state = cpu.state();
    state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state.random ^ state.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    cpu.set_register_sized(op.src, op.imm, mixed ^ mixed >> 31);
    cpu.status = Status::from_bits(rflags::CF);
    Ok(Flow::Next)
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return undefined();
    }
    let xcr0 = cpu.state().xcr0;
    match cpu.gpr[RCX] as u32 {
        // With XCR1, every component counts as in use.
        0 | 1 => cpu.set_edx_eax(xcr0),
        _ => return general_protection(),
    }
    Ok(Flow::Next)
}

fn xsetbv(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return undefined();
    }
    cpu.require_cpl_0()?;
    exit(Reason::Xsetbv)
}

fn check_pkru(cpu: &Cpu) -> Result<(), End> {
    if cpu.cr4 & cr4::PKE == 0 {
        return undefined();
    }
    if cpu.gpr[RCX] as u32 != 0 { general_protection() } else { Ok(()) }
}

fn rdpkru(cpu: &mut Cpu, _: &Op) -> Step {
    check_pkru(cpu)?;
    let pkru = u64::from(cpu.pkru);
    cpu.set_edx_eax(pkru);
    Ok(Flow::Next)
}

fn wrpkru(cpu: &mut Cpu, _: &Op) -> Step {
    check_pkru(cpu)?;
    if cpu.gpr[RDX] as u32 != 0 {
        return general_protection();
    }
    cpu.pkru = cpu.gpr[RAX] as u32;
    cpu.refresh_context();
    Ok(Flow::Leave)
}

const WBINVD: u64 = 0;
const WBNOINVD: u64 = 1;

fn write_back<const WHICH: u64>(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_cpl_0()?;
    if cpu.controls.has(WBINVD_EXITING) {
        return qualified_exit(Reason::WbinvdOrWbnoinvd, WHICH);
    }
    Ok(Flow::Next)
}

/// CLFLUSH, CLFLUSHOPT, CLWB: checked as a read of a byte.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.load_operand::<u8>(op, 0)?;
    Ok(Flow::Next)
}
