//! IRET. SDM Vol. 2, "IRET/IRETD/IRETQ—Interrupt Return"; Vol. 3, "Changes to Instruction Behavior in VMX Non-Root
//! Operation".

use super::far::{TaskSource, task_exit};
use super::{End, Flow, Step, finish, general_protection, handler};
use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::segment::{kind, rpl, virtual_8086};
use crate::state::Cpu;
use vmcs12::arch::event::Exception;
use vmcs12::arch::rflags;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::control::{NMI_EXITING, VIRTUAL_NMIS};
use vmcs12::cpu_state::gpr::RSP;

use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss, Tr};

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    op.imm = match d.inst.mnemonic() {
        Iret => 2,
        Iretd => 4,
        Iretq => 8,
        _ => return None,
    };
    Some(Selected::end(handler!(iret)))
}

/// Ends NMI blocking, whatever else becomes of the instruction.
fn iret(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.controls.has(NMI_EXITING) || cpu.controls.has(VIRTUAL_NMIS) {
        cpu.nmi_unblocking = std::mem::take(&mut cpu.nmi_blocked);
    }
    let step = interrupt_return(cpu, op);
    if matches!(step, Ok(_) | Err(End::Exit { .. })) {
        cpu.nmi_unblocking = false;
    }
    step
}

/// What stands on the stack.
struct Image {
    rip: u64,
    selector: u16,
    flags: u64,
}

fn interrupt_return(cpu: &mut Cpu, op: &Op) -> Step {
    let size = op.imm;
    if cpu.virtual_8086() && cpu.iopl() < 3 {
        return general_protection();
    }
    let real = !cpu.protected() || cpu.virtual_8086();
    if !real && cpu.rflags & rflags::NT != 0 {
        return task_return(cpu);
    }
    let rip = cpu.peek_sized(op, size, 0)?;
    let selector = cpu.peek_sized(op, size, size)? as u16;
    let flags = cpu.peek_sized(op, size, 2 * size)?;
    let image = Image { rip, selector, flags };
    if real {
        return return_real(cpu, op, &image);
    }
    if flags & rflags::VM != 0 && cpu.cpl == 0 && size == 4 && !cpu.long_mode() {
        return return_to_virtual_8086(cpu, op, &image);
    }
    return_protected(cpu, op, &image)
}

/// To the task that the back link names. SDM Vol. 3, "Task Linking".
fn task_return(cpu: &mut Cpu) -> Step {
    if cpu.long_mode() {
        return general_protection();
    }
    let base = cpu.segment(Tr).base;
    let selector = u16::from_le_bytes(cpu.read_system::<2>(base)?);
    cpu.check_task(selector, Exception::ts, true, 0)?;
    task_exit(selector, TaskSource::Iret)
}

/// RFLAGS that the instruction may change, by its size and by CPL and IOPL before it.
fn writable(cpu: &Cpu, size: u64) -> u64 {
    let mut writable = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if cpu.cpl <= cpu.iopl() {
        writable |= rflags::IF;
    }
    if cpu.cpl == 0 {
        writable |= rflags::IOPL;
    }
    if size == 2 {
        return writable;
    }
    writable |= rflags::AC | rflags::ID;
    if cpu.cpl == 0 && cpu.protected() {
        writable |= rflags::VIF | rflags::VIP;
    }
    // RF only ever hides an instruction breakpoint; it is not kept where there is none.
    if cpu.has_code_breakpoints() { writable | rflags::RF } else { writable }
}

/// Loads the flags of an image.
fn load_flags(cpu: &mut Cpu, image: &Image, writable: u64) {
    let kept = cpu.full_rflags() & !(writable | rflags::RF);
    let flags = kept | (image.flags & writable);
    cpu.resume_loaded = flags & rflags::RF != 0;
    cpu.set_full_rflags(flags);
}

fn return_real(cpu: &mut Cpu, op: &Op, image: &Image) -> Step {
    if !cpu.in_code_limit(image.rip) {
        return general_protection();
    }
    cpu.release_stack(3 * op.imm);
    let writable = writable(cpu, op.imm);
    let code =
        if cpu.virtual_8086() { virtual_8086(image.selector) } else { cpu.real_segment(Cs, image.selector) };
    cpu.set_segment(Cs, code);
    load_flags(cpu, image, writable);
    cpu.refresh_mode();
    Ok(Flow::To(image.rip))
}

fn return_to_virtual_8086(cpu: &mut Cpu, op: &Op, image: &Image) -> Step {
    let mut above = [0; 6];
    for (i, value) in above.iter_mut().enumerate() {
        *value = cpu.peek_sized(op, 4, 12 + 4 * i as u64)?;
    }
    if image.rip > 0xffff {
        return general_protection();
    }
    let [sp, ss, es, ds, fs, gs] = above;
    for (register, selector) in
        [(Cs, u64::from(image.selector)), (Ss, ss), (Es, es), (Ds, ds), (Fs, fs), (Gs, gs)]
    {
        cpu.set_segment(register, virtual_8086(selector as u16));
    }
    cpu.gpr[RSP] = sp;
    cpu.cpl = 3;
    cpu.set_full_rflags(image.flags & rflags::ALL & !rflags::RF);
    cpu.refresh_mode();
    Ok(Flow::To(image.rip))
}

fn return_protected(cpu: &mut Cpu, op: &Op, image: &Image) -> Step {
    let size = op.imm;
    let entry = cpu.return_segment(image.selector)?;
    // In 64-bit mode SS and RSP are always on the stack.
    let stack = if cpu.is_64() || rpl(image.selector) > cpu.cpl {
        let pointer = cpu.peek_sized(op, size, 3 * size)?;
        let selector = cpu.peek_sized(op, size, 4 * size)? as u16;
        Some((cpu.return_stack(selector, &entry)?, pointer))
    } else {
        None
    };
    cpu.check_far_target(entry.descriptor, image.rip)?;
    cpu.mark(&entry, kind::ACCESSED)?;
    let writable = writable(cpu, size);
    match stack {
        Some((stack, pointer)) => cpu.return_outward(&entry, stack, pointer),
        None => {
            cpu.release_stack(3 * size);
            cpu.load_code(&entry, cpu.cpl);
            cpu.refresh_mode();
        }
    }
    load_flags(cpu, image, writable);
    Ok(Flow::To(image.rip))
}
