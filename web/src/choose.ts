// Chooses where a program runs: WebGPU where it gives what WebAssembly gives, otherwise WebAssembly.
//
// Graphics drivers differ, and a wrong one would return wrong updates without an error: so the first step is computed on
// both, and WebGPU is used only if they agree.

import { reason } from "./errors";
import { Kernel, type Result } from "./kernel";
import type { Task } from "./messages";
import type { Program } from "./program";
import { type Backend, type Runtime, wasm, webgpu } from "./runtime";
import type { Tensors } from "./safetensors";

/** `auto` leaves software adapters alone, which are slower than WebAssembly; `webgpu` takes them too. */
export type Wanted = "auto" | Backend;

/** The first task, of which one step is tried. */
export interface Trial {
  readonly task: Task;
  readonly vector: Float32Array<ArrayBuffer>;
  readonly anchor: Float32Array<ArrayBuffer> | undefined;
  readonly shard: Tensors;
}

/** A kernel, and why it is this one. */
export interface Choice {
  readonly kernel: Kernel;
  readonly why: string;
}

/** How far one step's updates may be apart, relative to the update: rounding is well below, a wrong shader far above. */
export const TOLERANCE = 1e-3;

/** The kernel for a program. */
export async function choose(program: Program, wanted: Wanted, trial: Trial, threads?: number): Promise<Choice> {
  const cpu = await Kernel.open(program, await wasm(threads));
  if (wanted === "wasm") return { kernel: cpu, why: "WebAssembly was asked for" };
  let gpu: Kernel | undefined;
  let runtime: Runtime | undefined;
  try {
    runtime = await webgpu(wanted === "webgpu");
    if (!runtime) return { kernel: cpu, why: "the browser offers no GPU" };
    gpu = await Kernel.open(program, runtime);
    const apart = distance(await first(gpu, trial), await first(cpu, trial));
    if (apart <= TOLERANCE) {
      await cpu.close();
      return { kernel: gpu, why: `its first step agrees with WebAssembly's (difference ${apart.toExponential(1)})` };
    }
    await discard(gpu);
    return { kernel: cpu, why: `the GPU's first step differs from WebAssembly's (by ${apart.toExponential(1)})` };
  } catch (error) {
    await gpu?.close().catch(() => undefined); // it may be what broke
    runtime?.device?.destroy();
    return { kernel: cpu, why: `the GPU does not run this program: ${reason(error)}` };
  }
}

/** Give a chosen kernel's memory back, and the GPU that was asked for it. */
export async function discard(kernel: Kernel): Promise<void> {
  try {
    await kernel.close();
  } finally {
    kernel.runtime.device?.destroy();
  }
}

/** ‖one - two‖ / ‖two‖ over delta and buffers; infinite where a number is not finite. */
export function distance(one: Values, two: Values): number {
  const worst = Math.max(relative(one.delta, two.delta), relative(one.buffers, two.buffers));
  return Number.isNaN(worst) ? Infinity : worst;
}

type Values = Pick<Result, "delta" | "buffers">;

/** ‖one - two‖ / ‖two‖; 0 where they are the same. */
export function relative(one: ArrayLike<number>, two: ArrayLike<number>): number {
  let [apart, whole] = [0, 0];
  for (let i = 0; i < two.length; i++) {
    if (one[i] !== two[i]) apart += (one[i]! - two[i]!) ** 2; // equal infinities, as in a mask, are no difference
    if (Number.isFinite(two[i])) whole += two[i]! ** 2;
  }
  return apart === 0 ? 0 : Math.sqrt(apart / whole);
}

function first(
  kernel: { run: Kernel["run"]; runtime: Runtime },
  { task, vector, anchor, shard }: Trial,
): Promise<Result> {
  return kernel.run({ ...task, steps: 1 }, vector, anchor, shard);
}
