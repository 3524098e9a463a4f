// Runs a task with ONNX Runtime in a browser: the twin of trainpool/kernels/onnx.py.
//
// Parameters, buffers and optimizer state go in once and stay where they are computed, on a GPU in its memory; what a
// step returned is the next step's input. Only batches and noise go in, and the loss comes out, with every step.

import { KernelError, MessageError } from "./errors";
import { type Report, rate, type Task } from "./messages";
import { elements, fits, type Program, type SampleSpec, SHARD_KINDS } from "./program";
import { batches, noise } from "./rng";
import { type OrtTensor, place, type Runtime, type Session, session } from "./runtime";
import type { Tensor, Tensors } from "./safetensors";

/** A task's answer. */
export interface Result {
  readonly report: Report;
  /** Parameters at the start minus parameters at the end `[trainable]`. */
  readonly delta: Float32Array<ArrayBuffer>;
  /** The buffers as they are at the end `[size - trainable]`. */
  readonly buffers: Float32Array<ArrayBuffer>;
}

/** A model's performance on a data set. */
export interface Evaluation {
  readonly loss: number;
  readonly accuracy: number | null;
  readonly samples: number;
}

/** Called after each step with the number of steps done; the task ends early where it returns false. */
export type Watch = (done: number, loss: number) => boolean | Promise<boolean>;

type Floats = Float32Array<ArrayBuffer>;
type Feeds = Record<string, OrtTensor>;

/** Runs the tasks of one program. */
export class Kernel {
  private measuring: Session | undefined;

  private constructor(
    readonly program: Program,
    readonly runtime: Runtime,
    private readonly training: Session,
    private readonly carried: readonly Part[],
    private readonly anchors: readonly Part[],
  ) {}

  /** Prepare a program's training step. */
  static async open(program: Program, runtime: Runtime): Promise<Kernel> {
    const tensors = partsOf(program);
    const state = program.manifest.state.map(({ name, shape }) => ({ name: `s.${name}`, shape, offset: -1 }));
    const carried = [...tensors, ...state];
    const outputs = ["loss", ...carried.map(({ name }) => `new.${name}`)];
    const training = await session(runtime, program.train, outputs);
    const anchors = tensors
      .filter(({ name }) => name.startsWith("p."))
      .map((p) => ({ ...p, name: `a${p.name.slice(1)}` }))
      .filter(({ name }) => training.inputNames.includes(name));
    return new Kernel(program, runtime, training, carried, anchors);
  }

  /** Train. `vector` holds parameters and buffers `[size]`, `anchor` the proximal term's centre `[trainable]`,
   * where that is not where the task begins. */
  async run(task: Task, vector: Floats, anchor: Floats | undefined, shard: Tensors, watch?: Watch): Promise<Result> {
    const { program, training } = this;
    const { noise: noises, x, y } = program.manifest;
    fits(program, task);
    expectLength("the task's parameters", vector, program.size);
    if (anchor) expectLength("the anchor's parameters", anchor, program.trainable);
    const { rho } = task;
    if (rho > 0 && !training.inputNames.includes("rho")) throw new KernelError("the program has no proximal term");
    const samples = new Samples(shard, x, y);
    const feeds: Feeds = {};
    try {
      this.put(feeds, this.carried, vector);
      this.put(feeds, this.anchors, anchor ?? vector);
      const begin = performance.now();
      let [total, step] = [0, 0];
      for (const rows of batches(task.seed, samples.count, task.offset, task.steps, task.batch)) {
        const offset = task.offset + step * task.batch;
        for (const [k, { name, shape }] of noises.entries()) {
          feeds[name] = this.tensor(noise(task.seed, k, offset, elements(shape)), shape);
        }
        feeds.x = samples.x.take(rows, this.runtime);
        feeds.y = samples.y.take(rows, this.runtime);
        feeds.rate = this.scalar(rate(task.recipe, task.progress + step * task.pace));
        feeds.rho = this.scalar(rho);
        feeds.step = this.scalar(step + 1);
        const loss = await this.step(feeds);
        if (step === 0 && !Number.isFinite(loss)) {
          throw new KernelError(`the loss is ${loss} at the first step: check the data and lower the learning rate`);
        }
        total += loss;
        step++;
        if (watch && !(await watch(step, loss))) break;
      }
      const seconds = (performance.now() - begin) / 1000;
      const mean = total / step;
      if (!Number.isFinite(mean)) {
        throw new KernelError(`the loss became ${mean} within ${step} steps: lower the learning rate or set clip_norm`);
      }
      const end = await this.get(feeds);
      const delta = end.subarray(0, program.trainable).map((p, i) => vector[i]! - p);
      const report = { task: task.id, steps: step, samples: step * task.batch, loss: mean, seconds };
      return { report, delta, buffers: end.slice(program.trainable) };
    } finally {
      for (const { name } of [...this.carried, ...this.anchors]) feeds[name]?.dispose();
    }
  }

  /** Measure the model on a data set. */
  async evaluate(vector: Floats, data: Tensors): Promise<Evaluation> {
    const { program } = this;
    const { evaluation_batch: batch, correct, x, y } = program.manifest;
    expectLength("the task's parameters", vector, program.size);
    const samples = new Samples(data, x, y);
    const parts = partsOf(program);
    this.measuring ??= await session(this.runtime, program.evaluate, ["loss", "correct"]);
    const feeds: Feeds = {};
    let [loss, right] = [0, 0];
    try {
      this.put(feeds, parts, vector);
      for (let start = 0; start < samples.count; start += batch) {
        // What fills the last batch are the first samples, which the mask then leaves out.
        const rows = Uint32Array.from({ length: batch }, (_, i) => (start + i) % samples.count);
        const mask = Float32Array.from({ length: batch }, (_, i) => (start + i < samples.count ? 1 : 0));
        feeds.x = samples.x.take(rows, this.runtime);
        feeds.y = samples.y.take(rows, this.runtime);
        feeds.mask = this.tensor(mask, [batch]);
        const results = await this.measuring.run(pick(feeds, this.measuring));
        loss += Number(results.loss!.data[0]);
        right += Number(results.correct!.data[0]);
      }
    } finally {
      for (const { name } of parts) feeds[name]?.dispose();
    }
    return { loss: loss / samples.count, accuracy: correct ? right / samples.count : null, samples: samples.count };
  }

  /** Give the sessions' memory back. */
  async close(): Promise<void> {
    await this.training.release();
    await this.measuring?.release();
  }

  /** One step: what it makes new takes the place of what it came from. */
  private async step(feeds: Feeds): Promise<number> {
    const results = await this.training.run(pick(feeds, this.training));
    for (const { name } of this.carried) {
      feeds[name]!.dispose();
      feeds[name] = results[`new.${name}`]!;
    }
    return Number(results.loss!.data[0]);
  }

  private put(feeds: Feeds, parts: readonly Part[], vector: Floats): void {
    for (const { name, shape, offset } of parts) {
      const size = elements(shape);
      const values = offset < 0 ? new Float32Array(size) : vector.subarray(offset, offset + size);
      feeds[name] = place(this.runtime, values, shape);
    }
  }

  private async get(feeds: Feeds): Promise<Floats> {
    const vector = new Float32Array(this.program.size);
    for (const { name, offset } of this.carried) {
      if (offset >= 0) vector.set((await feeds[name]!.getData()) as Floats, offset);
    }
    return vector;
  }

  private tensor(values: Floats, shape: readonly number[]): OrtTensor {
    return new this.runtime.ort.Tensor("float32", values, shape);
  }

  private scalar(value: number): OrtTensor {
    return this.tensor(Float32Array.of(value), []);
  }
}

/** A shard's samples. */
class Samples {
  readonly x: Rows;
  readonly y: Rows;

  constructor(shard: Tensors, x: SampleSpec, y: SampleSpec) {
    this.x = new Rows("x", shard.get("x"), x);
    this.y = new Rows("y", shard.get("y"), y);
    if (this.x.count !== this.y.count || this.count === 0)
      throw new MessageError("a shard needs x and y of one length");
  }

  get count(): number {
    return this.x.count;
  }
}

/** One of a shard's tensors, by rows. */
class Rows {
  readonly count: number;
  private readonly width: number;
  private readonly values: Uint8Array<ArrayBuffer> | BigInt64Array<ArrayBuffer> | Floats;

  constructor(
    name: string,
    tensor: Tensor | undefined,
    private readonly spec: SampleSpec,
  ) {
    const [count, ...shape] = tensor?.shape ?? [];
    if (tensor?.kind !== SHARD_KINDS[spec.dtype] || shape.join() !== spec.shape.join() || count === undefined) {
      const found = tensor ? `${tensor.kind} [${shape}]` : "missing";
      throw new MessageError(`the shard's ${name} is ${found}, but the program wants ${spec.dtype} [${spec.shape}]`);
    }
    this.count = count;
    this.width = elements(shape);
    this.values = tensor.values as Floats;
  }

  /** The given rows as one batch. */
  take(rows: Uint32Array, { ort }: Runtime): OrtTensor {
    const { width, values, spec } = this;
    const batch = new (values.constructor as Float32ArrayConstructor)(rows.length * width);
    for (const [i, row] of rows.entries()) {
      batch.set(values.subarray(row * width, (row + 1) * width) as Floats, i * width);
    }
    return new ort.Tensor(spec.dtype as "float32", batch, [rows.length, ...spec.shape]);
  }
}

/** A tensor that a graph takes: where it begins in the flat vector, or -1 where it begins as zeros. */
interface Part {
  readonly name: string;
  readonly shape: readonly number[];
  readonly offset: number;
}

function partsOf(program: Program): Part[] {
  return program.layout.map(({ name, shape, offset, role }) => {
    return { name: `${role === "parameter" ? "p" : "b"}.${name}`, shape, offset };
  });
}

/** A graph takes only what it needs; it refuses what it does not know. */
function pick(feeds: Feeds, { inputNames }: Session): Feeds {
  return Object.fromEntries(inputNames.map((name) => [name, feeds[name]!]));
}

function expectLength(what: string, vector: Floats, length: number): void {
  if (vector.length === length) return;
  throw new MessageError(`${what} have ${vector.length} elements, but the program has ${length}`);
}
