//! Loads and stores of segment registers, FS.base and GS.base. SDM Vol. 2, "MOV—Move", "POP", "PUSH",
//! "LDS/LES/LFS/LGS/LSS—Load Far Pointer", "RDFSBASE/RDGSBASE", "WRFSBASE/WRGSBASE", "SWAPGS".

use super::{Flow, Step, finish, general_protection, handler, set_either, undefined};
use crate::block::Op;
use crate::decode::{Decoding, Selected, operand_size, register_offset, segment_number};
use crate::interpret::operand::register;
use crate::mmu::access::is_canonical;
use crate::state::Cpu;
use iced_x86::OpKind;
use vmcs12::arch::cr::cr4;
use vmcs12::arch::segment::{Segment, SegmentRegister};

use SegmentRegister::{Cs, Fs, Gs, Ss};

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::{Code::*, Mnemonic};
    let inst = d.inst;
    let (operand, handler) = match inst.code() {
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => {
            set_either(d, op, 0);
            op.dst = segment_number(inst.op1_register());
            (operand_size(inst, 0), handler!(store))
        }
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => {
            set_either(d, op, 1);
            op.dst = segment_number(inst.op0_register());
            if op.dst == Cs as u8 {
                return Some(Selected::end(handler!(never)));
            }
            (0, handler!(load))
        }
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => (2, handler!(push)),
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => (4, handler!(push)),
        Pushq_FS | Pushq_GS => (8, handler!(push)),
        Popw_ES | Popw_CS | Popw_SS | Popw_DS | Popw_FS | Popw_GS => (2, handler!(pop)),
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => (4, handler!(pop)),
        Popq_FS | Popq_GS => (8, handler!(pop)),
        _ => return select_pointer(d, op),
    };
    if matches!(inst.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
        op.dst = segment_number(inst.op0_register());
    }
    op.imm = operand as u64;
    let stores = matches!(inst.mnemonic(), Mnemonic::Push)
        || inst.op0_kind() == OpKind::Memory
        || inst.op0_register().is_gpr();
    // A new SS changes the stack's size, and interrupts wait for an instruction.
    Some(if stores || op.dst != Ss as u8 { Selected::next(handler) } else { Selected::end(handler) })
}

fn select_pointer(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    let inst = d.inst;
    let far = match inst.mnemonic() {
        Les => SegmentRegister::Es,
        Lds => SegmentRegister::Ds,
        Lfs => Fs,
        Lgs => Gs,
        Lss => Ss,
        Rdfsbase => return Some(Selected::next(base(d, op, Fs, handler!(read_base)))),
        Rdgsbase => return Some(Selected::next(base(d, op, Gs, handler!(read_base)))),
        Wrfsbase => return Some(Selected::next(base(d, op, Fs, handler!(write_base)))),
        Wrgsbase => return Some(Selected::next(base(d, op, Gs, handler!(write_base)))),
        Swapgs => return Some(Selected::next(handler!(swapgs))),
        _ => return None,
    };
    op.src = register_offset(inst.op0_register());
    op.dst = far as u8;
    op.imm = inst.op0_register().size() as u64;
    Some(Selected::end(handler!(load_pointer)))
}

fn base(
    d: &Decoding<'_>,
    op: &mut Op,
    segment: SegmentRegister,
    handler: crate::block::Handler,
) -> crate::block::Handler {
    op.src = register_offset(d.inst.op0_register());
    op.imm = d.inst.op0_register().size() as u64;
    op.dst = segment as u8;
    handler
}

fn target(op: &Op) -> SegmentRegister {
    SegmentRegister::ALL[usize::from(op.dst)]
}

/// MOV to CS.
fn never(_: &mut Cpu, _: &Op) -> Step {
    undefined()
}

fn store(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.segment(target(op)).selector;
    cpu.write_either_16(op, u64::from(selector))?;
    Ok(Flow::Next)
}

impl Cpu {
    /// What a load of a segment register other than CS gives; nothing is loaded yet.
    fn loaded_segment(
        &mut self,
        register: SegmentRegister,
        selector: u16,
    ) -> Result<Segment, crate::mmu::Fault> {
        if register == Ss { self.stack_segment(selector) } else { self.data_segment(register, selector) }
    }

    /// Loads a segment register other than CS.
    fn load_segment(&mut self, register: SegmentRegister, segment: Segment) -> Flow {
        self.set_segment(register, segment);
        if register != Ss {
            return Flow::Next;
        }
        self.refresh_mode();
        Flow::Leave
    }
}

/// MOV to a segment register: after SS, one more instruction runs before interrupts and debug traps.
fn load(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.read_either::<u16>(op)?;
    let segment = cpu.loaded_segment(target(op), selector)?;
    if target(op) == Ss {
        cpu.mov_ss_shadow = cpu.retired_before(op) + 1;
    }
    Ok(cpu.load_segment(target(op), segment))
}

fn push(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.segment(target(op)).selector;
    cpu.push_selector(op, selector)?;
    Ok(Flow::Next)
}

impl Cpu {
    /// Pushes a selector: of a 32-bit slot only the low half is written.
    fn push_selector(&mut self, op: &Op, selector: u16) -> Result<(), super::End> {
        if op.imm != 4 {
            return self.push_sized(op, op.imm, u64::from(selector));
        }
        let before = self.gpr[vmcs12::cpu_state::gpr::RSP];
        self.move_stack::<false>(2u64.wrapping_neg());
        let pushed = self.push_sized(op, 2, u64::from(selector));
        if pushed.is_err() {
            self.gpr[vmcs12::cpu_state::gpr::RSP] = before;
        }
        pushed
    }
}

fn pop(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.peek_sized(op, op.imm, 0)? as u16;
    let segment = cpu.loaded_segment(target(op), selector)?;
    if target(op) == Ss {
        cpu.mov_ss_shadow = cpu.retired_before(op) + 1;
    }
    // The old stack's size decides how RSP is incremented.
    cpu.release_stack(op.imm);
    Ok(cpu.load_segment(target(op), segment))
}

/// LDS, LES, LFS, LGS, LSS.
fn load_pointer(cpu: &mut Cpu, op: &Op) -> Step {
    let offset = match op.imm {
        2 => u64::from(cpu.load_operand::<u16>(op, 0)?),
        4 => u64::from(cpu.load_operand::<u32>(op, 0)?),
        _ => cpu.load_operand::<u64>(op, 0)?,
    };
    let selector = cpu.load_operand::<u16>(op, op.imm)?;
    let segment = cpu.loaded_segment(target(op), selector)?;
    cpu.load_segment(target(op), segment);
    cpu.set_register_sized(op.src, op.imm, offset);
    Ok(Flow::Leave)
}

fn require_fsgsbase(cpu: &Cpu) -> Result<(), super::End> {
    if cpu.is_64() && cpu.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { undefined() }
}

fn read_base(cpu: &mut Cpu, op: &Op) -> Step {
    require_fsgsbase(cpu)?;
    let base = cpu.segment(target(op)).base;
    cpu.set_register_sized(op.src, op.imm, base);
    Ok(Flow::Next)
}

fn write_base(cpu: &mut Cpu, op: &Op) -> Step {
    require_fsgsbase(cpu)?;
    let base =
        if op.imm == 4 { u64::from(register::<u32>(cpu, op.src)) } else { register::<u64>(cpu, op.src) };
    if !is_canonical(base) {
        return general_protection();
    }
    let segment = *cpu.segment(target(op));
    cpu.set_segment(target(op), Segment { base, ..segment });
    Ok(Flow::Next)
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Step {
    if !cpu.is_64() {
        return undefined();
    }
    cpu.require_cpl_0()?;
    let gs = *cpu.segment(Gs);
    let base = std::mem::replace(&mut cpu.state().kernel_gs_base, gs.base);
    cpu.set_segment(Gs, Segment { base, ..gs });
    Ok(Flow::Next)
}
