"""Prompts as people write them for driving and robotics, with the abbreviations, units and signs that they use."""

from __future__ import annotations

from itertools import product

SCENES = (
    "A robot arm lifts {} off the conveyor belt, and the camera pans slowly to the left.",
    "Dashcam view: an ego vehicle follows {} through light rain at 50 km/h (31 mph).",
    "The AMR stops in front of {}, waits 3 s, turns 90\u00b0 to the right & drives on.",
    "Top-down shot of {} in a warehouse; aisle B-7, shelf 4 x 3, LiDAR and RGB-D sensors on top.",
    "At 5 p.m. {} appears at a 4-way stop, 10% fog, wet asphalt, neon signs reflecting in puddles.",
    "I see {} near the no-stopping zone; it is up to us to go on, or to let it pass.",
    "First-person POV: a quadruped robot trots past {}, e.g. in a spin, its parts sway.",
    "Two drones, U.A.V. no. 1 and 2, deliver {} to dock C; plan B is a live drop <5 m away.",
    "Caf\u00e9 terrace in Z\u00fcrich, 24 fps, f/2.8, ISO 400: {} rolls by, na\u00efve pedestrians step back.",
    "Wide shot, 1280x704, 30 FPS, H.264: {} stops, reverses, and parks; tools & pots on a table.",
)
SUBJECTS = (
    "a red box",
    "an S-class sedan with V8 badge",
    "a forklift (Model X5, A.I. assisted)",
    "a cyclist in a hi-vis vest",
    "a school bus on I-95 at exit 17A",
    "a humanoid robot with 7-DoF arms",
    "a pick-up truck: 4x4, 2 t, M+S tyres",
    "a crate labelled 'K-9 / R&D'",
    "a tram on line 5 to St. Anna",
    "an ambulance, A to B, lights on",
    "the gripper, x = 1.5, y = 0, z = 2",
    "a delivery van & trailer, 100% electric",
    'a bag of nuts, bolts and 3/8" sockets',
    "a dog on a leash, a cat, and I",
    "an old sign: S T O P",
    "a level-4 car by a no. 1 brand",
    "a pallet with 1 0 1 0 0 on a label",
    "a spare part; a trap, a star, a drawer",
    "a tool strap, some snug loops, a bat",
    "steps a, b, c, d, e and f of the assembly",
)


def ordinary_prompts() -> list[str]:
    return [scene.format(subject) for scene, subject in product(SCENES, SUBJECTS)]
