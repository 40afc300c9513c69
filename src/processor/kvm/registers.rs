//! Guest registers in KVM's format.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};

use crate::boot::{DescriptorTable, EntryState};

/// The general registers, RIP and RFLAGS of a boot processor.
#[must_use]
pub fn general(of: &EntryState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = of.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: of.rip,
        rflags: of.rflags,
    }
}

/// Sets the control and segment registers of a boot processor; the others stay as after reset.
pub fn set_system(sregs: &mut kvm_sregs, of: &EntryState) {
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (of.cr0, of.cr3, of.cr4, of.efer);
    sregs.cs = segment(of.segment(SegmentRegister::Cs));
    sregs.ds = segment(of.segment(SegmentRegister::Ds));
    sregs.es = segment(of.segment(SegmentRegister::Es));
    sregs.fs = segment(of.segment(SegmentRegister::Fs));
    sregs.gs = segment(of.segment(SegmentRegister::Gs));
    sregs.ss = segment(of.segment(SegmentRegister::Ss));
    sregs.ldt = segment(of.segment(SegmentRegister::Ldtr));
    sregs.tr = segment(of.segment(SegmentRegister::Tr));
    (sregs.gdt, sregs.idt) = (table(of.gdtr), table(of.idtr));
}

fn table(of: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: of.base, limit: of.limit, padding: [0; 3] }
}

/// A segment register with its hidden part.
#[must_use]
pub fn segment(of: Segment) -> kvm_segment {
    let bit = |field| u8::from(of.rights.get::<bool>(field));
    kvm_segment {
        base: of.base,
        limit: of.limit,
        selector: of.selector,
        type_: of.rights.get(AccessRights::TYPE),
        s: bit(AccessRights::S),
        dpl: of.rights.get(AccessRights::DPL),
        present: bit(AccessRights::P),
        avl: bit(AccessRights::AVL),
        l: bit(AccessRights::L),
        db: bit(AccessRights::DB),
        g: bit(AccessRights::G),
        unusable: bit(AccessRights::UNUSABLE),
        padding: 0,
    }
}
