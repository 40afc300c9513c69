//! Whatever L1 writes and L2 does, the engine does not panic, and what it gives the processor is valid.

mod world;

use shadow::{L2Exit, Outcome, Pending};
use vmcs12::addr::{ARENA_BASE, Pa, Physical};
use vmcs12::check::{self, Ctx, Entrant};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::{AnyField, Vmcs, table::*};
use vmcs12::implemented;
use world::*;

/// A linear congruential generator: the same numbers on every host.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    /// A number of the kind that finds mistakes.
    fn odd(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => !(1 << self.below(64)),
            4 => self.below(0x1_0000),
            5 => self.below(RAM) & !0xfff,
            6 => ARENA_BASE.0 + self.below(ARENA),
            _ => self.next(),
        }
    }
    fn reason(&mut self) -> Reason {
        Reason::ALL[self.below(Reason::COUNT as u64) as usize]
    }
}

/// The rule that a VMCS given to the processor breaks.
fn refused(memory: &Memory, vmcs: &Vmcs) -> Option<&'static str> {
    let caps = implemented::processor();
    let entrant = Entrant { long_mode: true, current_vmcs: u64::MAX };
    let ctx = Ctx::new(vmcs, &caps, entrant, |at, into| memory.read(Pa(at), into));
    let broken = check::controls_and_host(&ctx).err().map(|refusal| refusal.rule.id);
    broken.or(check::guest(&ctx).err().map(|failure| failure.rule.id))
}

/// Changes a few fields or controls of vmcs12.
fn spoil(world: &mut World, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if random.below(2) == 0 {
            let control = CONTROLS[random.below(CONTROLS.len() as u64) as usize].0;
            let on = !world.vmcs12().has(control);
            world.vmcs12().set_control(control, on);
        } else {
            let field = AnyField::at(random.below(COUNT as u64) as usize);
            let value = random.odd();
            let held = world.vmcs12().raw(field);
            let value = if random.below(2) == 0 { held ^ 1 << random.below(64) } else { value };
            world.vmcs12().set_raw(field, value);
        }
    }
}

#[test]
fn whatever_passes_l1s_checks_gives_a_vmcs02_that_passes_the_processors() {
    let mut random = Random(1);
    let (mut entered, mut refusals) = (0, 0);
    let mut world = World::with_current();
    let before = world.vmcs01.current.clone();
    for _ in 0..60_000 {
        *world.vmcs01.current = (*before).clone();
        fill_valid(world.vmcs12());
        if random.below(2) == 0 {
            world.enable_ept12_pointer();
            world.vmcs12().set_control(UNRESTRICTED_GUEST, true);
        }
        spoil(&mut world, &mut random);
        let launched = world.engine.counters.entries > 0;
        let reason = if launched { Reason::Vmresume } else { Reason::Vmlaunch };
        match world.instruction(reason) {
            Outcome::Entered => {
                entered += 1;
                let vmcs02 = world.engine.vmcs02.current.clone();
                let changed = world.vmcs12().clone();
                assert_eq!(refused(&world.memory, &vmcs02), None, "{changed:?}");
                assert!(vmcs02.get(EPTP).root().0 >= ARENA_BASE.0);
                let exit = world.exit(Reason::Cpuid, |_| {});
                assert!(matches!(exit, L2Exit::Reflected | L2Exit::Abort(_)));
                if exit == L2Exit::Reflected {
                    assert_eq!(refused(&world.memory, &world.vmcs01.current), None, "{changed:?}");
                }
            }
            Outcome::Reflected => {
                refusals += 1;
                assert_eq!(refused(&world.memory, &world.vmcs01.current), None);
            }
            Outcome::Completed => refusals += 1,
            Outcome::Abort(_) => {}
            Outcome::Exception(exception) => panic!("VM entry raised {exception:?}"),
        }
        assert!(!world.engine.in_l2());
    }
    assert!(entered > 5_000 && refusals > 5_000, "{entered} entered, {refusals} refused");
}

#[test]
fn any_sequence_of_instructions_and_exits_is_survived() {
    let mut random = Random(2);
    let mut world = World::with_current();
    let eptp = world.enable_ept12();
    for round in 0..60_000_u64 {
        for gpr in &mut world.state.gpr {
            *gpr = random.odd();
        }
        if round % 500 == 0 {
            world = World::with_current();
            world.enable_ept12();
        }
        if world.engine.in_l2() {
            let (reason, odd) = (random.reason(), [random.odd(), random.odd(), random.odd(), random.odd()]);
            let _ = world.exit(reason, |vmcs02| {
                vmcs02.set(EXIT_QUALIFICATION, odd[0]);
                vmcs02.set(GUEST_PHYSICAL_ADDRESS, odd[1]);
                vmcs02.set_raw(ORIGINAL_EVENT_IDENTIFICATION.any(), odd[2]);
                vmcs02.set_raw(EXITING_EVENT_IDENTIFICATION.any(), odd[3]);
            });
        } else {
            let at = World::leaf12(random.below(RAM));
            let pointer = [VMCS_REGION, OTHER_REGION, VMXON_REGION, random.odd()][random.below(4) as usize];
            world.memory.write_u64(at, random.odd());
            world.memory.write_u64(Pa(OPERAND), if random.below(2) == 0 { pointer } else { eptp.0 });
            world.at_memory_operand(if random.below(4) == 0 { random.odd() } else { OPERAND });
            if world.vmcs01.linked.is_some() && random.below(4) == 0 {
                spoil(&mut world, &mut random);
            }
            let reason = if random.below(2) == 0 { Reason::Vmlaunch } else { random.reason() };
            let _ = world.instruction(reason);
        }
        if world.engine.in_l2() {
            let pending = Pending {
                init: random.below(50) == 0,
                nmi: random.below(20) == 0,
                interrupt: (random.below(5) == 0).then_some(0x41),
            };
            let _ = world.before_entry(pending);
        }
        world.engine.invalidations.drain(|_| {});
    }
}

#[test]
fn any_region_in_memory_is_survived() {
    let mut random = Random(3);
    for _ in 0..200 {
        let mut world = World::in_root();
        for at in (64..4096).step_by(8) {
            world.memory.write_u64(Pa(VMCS_REGION + at), random.odd());
        }
        assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), Outcome::Completed);
        let _ = world.instruction(Reason::Vmlaunch);
        let _ = world.instruction(Reason::Vmxoff);
    }
}
