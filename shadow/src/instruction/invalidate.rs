//! INVEPT and INVVPID. SDM Vol. 3, "VMX Instruction Reference"; "Operations that Invalidate Cached Mappings".

use super::Failure;
use crate::engine::{Engine, Host, Msrs};
use vmcs12::addr::{Gva, Linear, Physical};
use vmcs12::arch::eptp::{Eptp, memory_type};
use vmcs12::arch::event::Exception;
use vmcs12::bits::Bits;
use vmcs12::caps::{Capabilities, EptVpidCap};
use vmcs12::control::{ENABLE_EPT, ENABLE_VPID};
use vmcs12::error::InstructionError;
use vmcs12::exit::Invalidation;
use vmcs12::exit::instruction_info::InstructionInformation;

/// Types of INVEPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EptType {
    SingleContext,
    AllContext,
}

/// Types of INVVPID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum VpidType {
    IndividualAddress,
    SingleContext,
    AllContext,
    SingleContextRetainingGlobals,
}

/// Type operand, type, and the capability that it needs.
#[rustfmt::skip]
const EPT_TYPES: &[(u64, EptType, Bits<EptVpidCap, bool>)] = &[
    (1, EptType::SingleContext, EptVpidCap::INVEPT_SINGLE),
    (2, EptType::AllContext,    EptVpidCap::INVEPT_ALL),
];
#[rustfmt::skip]
const VPID_TYPES: &[(u64, VpidType, Bits<EptVpidCap, bool>)] = &[
    (0, VpidType::IndividualAddress,             EptVpidCap::INVVPID_ADDRESS),
    (1, VpidType::SingleContext,                 EptVpidCap::INVVPID_SINGLE),
    (2, VpidType::AllContext,                    EptVpidCap::INVVPID_ALL),
    (3, VpidType::SingleContextRetainingGlobals, EptVpidCap::INVVPID_RETAIN_GLOBALS),
];

const INVALID_OPERAND: Failure = Failure::Numbered(InstructionError::InvalidInvalidationOperand);

fn kind<T: Copy>(
    types: &[(u64, T, Bits<EptVpidCap, bool>)],
    operand: u64,
    offered: &Capabilities,
) -> Result<T, Failure> {
    let row = types.iter().find(|row| row.0 == operand && offered.ept_vpid.get(row.2));
    row.map(|row| row.1).ok_or(INVALID_OPERAND)
}

fn halves(descriptor: [u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(descriptor);
    (both as u64, (both >> 64) as u64)
}

impl Engine {
    pub(super) fn invept<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        if !self.offered.can_be_one(ENABLE_EPT) || !self.offered.ept_vpid.get(EptVpidCap::INVEPT) {
            return Err(Failure::Fault(Exception::UD));
        }
        self.in_root_operation(host)?;
        let operand = host.register(host.information().get(InstructionInformation::REGISTER_2));
        let kind = kind(EPT_TYPES, operand, &self.offered)?;
        let (eptp, _) = halves(host.read_operand()?);
        match kind {
            EptType::SingleContext if !is_valid_eptp(Eptp(eptp), &self.offered) => {
                return Err(INVALID_OPERAND);
            }
            EptType::SingleContext => {
                self.ept.drop_root(host.memory, Eptp(eptp).root(), &mut self.invalidations);
            }
            EptType::AllContext => self.ept.drop_all(host.memory, &mut self.invalidations),
        }
        Ok(())
    }

    pub(super) fn invvpid<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        if !self.offered.can_be_one(ENABLE_VPID) || !self.offered.ept_vpid.get(EptVpidCap::INVVPID) {
            return Err(Failure::Fault(Exception::UD));
        }
        self.in_root_operation(host)?;
        let operand = host.register(host.information().get(InstructionInformation::REGISTER_2));
        let kind = kind(VPID_TYPES, operand, &self.offered)?;
        let (low, address) = halves(host.read_operand()?);
        let vpid12 = u16::try_from(low).map_err(|_| INVALID_OPERAND)?;
        if vpid12 == 0 && kind != VpidType::AllContext {
            return Err(INVALID_OPERAND);
        }
        if kind == VpidType::IndividualAddress && !is_canonical(address, self.offered.linear_width) {
            return Err(INVALID_OPERAND);
        }
        self.forget_vpid(kind, vpid12, Gva(address));
        Ok(())
    }

    fn forget_vpid(&mut self, kind: VpidType, vpid12: u16, address: Gva) {
        let of_one: fn(u16, Gva) -> Invalidation = match kind {
            VpidType::AllContext => {
                self.vpids.each(|vpid02| self.invalidations.push(Invalidation::Vpid(vpid02)));
                return;
            }
            VpidType::IndividualAddress => Invalidation::VpidAddress,
            VpidType::SingleContext => |vpid, _| Invalidation::Vpid(vpid),
            VpidType::SingleContextRetainingGlobals => |vpid, _| Invalidation::VpidRetainGlobals(vpid),
        };
        if let Some(vpid02) = self.vpids.lookup(vpid12) {
            self.invalidations.push(of_one(vpid02, address));
        }
    }
}

fn is_canonical(address: u64, width: u32) -> bool {
    let unused = 64 - width.clamp(48, 57);
    ((address << unused) as i64 >> unused) as u64 == address
}

/// Would VM entry accept the EPT pointer? SDM Vol. 3, "VM-Execution Control Fields" (the checks of VM entry).
fn is_valid_eptp(eptp: Eptp, offered: &Capabilities) -> bool {
    let cap = |bit| offered.ept_vpid.get(bit);
    let memory_type = match eptp.get(Eptp::MEMORY_TYPE) {
        memory_type::UC => cap(EptVpidCap::UC),
        memory_type::WB => cap(EptVpidCap::WB),
        _ => false,
    };
    let walk_length = match eptp.get(Eptp::WALK_LENGTH_MINUS_1) {
        3 => cap(EptVpidCap::WALK_LENGTH_4),
        4 => cap(EptVpidCap::WALK_LENGTH_5),
        _ => false,
    };
    memory_type
        && walk_length
        && (!eptp.get(Eptp::ACCESSED_DIRTY) || cap(EptVpidCap::ACCESSED_DIRTY))
        && (!eptp.get(Eptp::SUPERVISOR_SHADOW_STACK) || cap(EptVpidCap::SUPERVISOR_SHADOW_STACK))
        && eptp.0 & (Eptp::RESERVED | offered.beyond_physical_width()) == 0
}
