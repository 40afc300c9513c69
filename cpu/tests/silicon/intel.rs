//! Where AMD's processors and Intel's differ in what their manuals define. Intel's behaviour is ours; on an AMD host
//! these forms or operands are left out.

use iced_x86::{Code, Instruction, Mnemonic, Register};

/// Is this an AMD host?
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes)
}

/// Forms that differ.
pub fn differs(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Movsxd_r16_rm16 if is_amd() => "AMD's reads 32 bits of memory, Intel's 16",
        Code::Reservednop_rm16_r16_0F0D
        | Code::Reservednop_rm32_r32_0F0D
        | Code::Reservednop_rm64_r64_0F0D
            if is_amd() =>
        {
            "AMD's raises #UD for a register operand, Intel's does nothing"
        }
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS
            if is_amd() =>
        {
            "AMD's writes 32 bits, Intel's the 16 of the selector"
        }
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 if is_amd() => {
            "AMD's checks for writing only if it changes the selector"
        }
        _ => return None,
    })
}

/// AMD's POPA keeps the registers that it has popped before a fault; here a fault leaves all as they were.
pub fn commits_before_fault(inst: &Instruction) -> bool {
    matches!(inst.mnemonic(), Mnemonic::Popa | Mnemonic::Popad) && is_amd()
}

/// AMD's INS and OUTS with a REP prefix check the port even if the count is 0.
pub fn checks_ports_late(inst: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(inst.mnemonic(), M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd) && is_amd()
}

/// A bit offset that takes an FS-relative address from the user's half below 0, into the other half: AMD's raises #GP,
/// and no manual says so. It happens if the register of the offset is that of the address, too.
pub fn wraps_below_zero(inst: &Instruction) -> bool {
    super::case::is_bit_string(inst)
        && inst.segment_prefix() == Register::FS
        && inst.memory_base().full_register() == inst.op1_register().full_register()
}

/// Neither manual says which operand of CMPS is read first: at most one of them may fault.
pub fn faults_in_its_own_order(inst: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(inst.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq)
}
