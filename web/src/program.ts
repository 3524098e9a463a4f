// A program: the training step and the evaluation as graphs, verified before anything runs. Twin of trainpool/program.py.

import operators from "../../src/trainpool/operators.json";
import { MessageError, ProgramError } from "./errors";
import {
  betas,
  type Check,
  flag,
  list,
  matching,
  optimizer,
  type Recipe,
  real,
  struct,
  type Task,
  text,
  whole,
  word,
} from "./messages";
import { type Contents, contents } from "./onnx-file";

type Bytes = Uint8Array<ArrayBuffer>;

/** What one file must be. */
interface FileSpec {
  readonly sha256: string;
  readonly bytes: number;
}

/** The types of a shard's tensors, by their names here and in safetensors. */
export const SHARD_KINDS = {
  uint8: "U8",
  int8: "I8",
  int16: "I16",
  int32: "I32",
  int64: "I64",
  float32: "F32",
  float64: "F64",
  bool: "BOOL",
} as const;

const BYTES = { uint8: 1, int8: 1, int16: 2, int32: 4, int64: 8, float32: 4, float64: 8, bool: 1 } as const;

/** One sample as the shard stores it. */
export interface SampleSpec {
  readonly dtype: keyof typeof SHARD_KINDS;
  readonly shape: readonly number[];
}

/** A named float32 tensor. */
export interface NamedShape {
  readonly name: string;
  readonly shape: readonly number[];
}

/** The part of a recipe that is built into the training step. */
export type BakedRecipe = Pick<
  Recipe,
  "optimizer" | "momentum" | "nesterov" | "weight_decay" | "betas" | "epsilon" | "clip_norm"
>;

/** program.json. */
export interface Manifest {
  readonly format: number;
  readonly name: string;
  readonly files: { readonly [K in (typeof FILES)[number]]: FileSpec };
  readonly batch: number;
  readonly evaluation_batch: number;
  readonly x: SampleSpec;
  readonly y: SampleSpec;
  readonly correct: boolean;
  readonly recipe: BakedRecipe;
  readonly state: readonly NamedShape[];
  readonly noise: readonly NamedShape[];
  readonly operators: readonly string[];
  /** The training step for processors with ONNX Runtime's own kernels, of which a browser has none. */
  readonly blocked: { readonly [K in (typeof BLOCKED)[number]]: FileSpec | null };
}

/** One tensor of the model, at its place in the flat vector. */
export interface TensorSpec extends NamedShape {
  readonly offset: number;
  readonly role: string;
}

/** A verified program. */
export interface Program {
  /** The SHA-256 of program.json: the program's name. */
  readonly id: string;
  readonly manifest: Manifest;
  readonly layout: readonly TensorSpec[];
  /** Elements of the flat vector, and of its leading part that is trained. */
  readonly size: number;
  readonly trainable: number;
  readonly train: Bytes;
  readonly evaluate: Bytes;
}

export const MANIFEST = "program.json";
export const FILES = ["train.onnx", "evaluate.onnx", "layout.json"] as const;
const BLOCKED = ["train.8.onnx", "train.16.onnx"] as const;
/** What a program may consist of; the list is Python's. */
export const OPERATORS: ReadonlySet<string> = new Set(operators);
const MOST_BYTES = 2 ** 30; // of one file
const MOST_ELEMENTS = 2 ** 31; // of one tensor
const MOST_MEMORY = 2 ** 34; // of a program's batches, random numbers, parameters and optimizer state, in bytes

const size = whole(0, MOST_ELEMENTS);
const batch = whole(1, 2 ** 20);
const shape = list(size, 0, 8);
const hash = matching(/^[0-9a-f]{64}$/);
const named = list(struct<NamedShape>({ name: { check: text }, shape: { check: shape } }));
const sample = struct<SampleSpec>({
  dtype: { check: word(...(Object.keys(SHARD_KINDS) as SampleSpec["dtype"][])) },
  shape: { check: shape },
});
const file: Check<FileSpec> = struct<FileSpec>({ sha256: { check: hash }, bytes: { check: whole(1, MOST_BYTES) } });
const manifestOf = struct<Manifest>({
  format: { check: whole(1, 1) },
  name: { check: text },
  files: {
    check: struct({ "train.onnx": { check: file }, "evaluate.onnx": { check: file }, "layout.json": { check: file } }),
  },
  batch: { check: batch },
  evaluation_batch: { check: batch },
  x: { check: sample },
  y: { check: sample },
  correct: { check: flag },
  recipe: {
    check: struct<BakedRecipe>({
      optimizer: { check: optimizer },
      momentum: { check: real({ from: 0, below: 1 }) },
      nesterov: { check: flag },
      weight_decay: { check: real({ from: 0 }) },
      betas: { check: betas },
      epsilon: { check: real({ above: 0 }) },
      clip_norm: { check: real({ from: 0 }) },
    }),
  },
  state: { check: named },
  noise: { check: named },
  operators: { check: list(text) },
  blocked: {
    check: struct<Manifest["blocked"]>({
      "train.8.onnx": { check: file, otherwise: null },
      "train.16.onnx": { check: file, otherwise: null },
    }),
    otherwise: { "train.8.onnx": null, "train.16.onnx": null },
  },
});
const layoutOf = struct<{ tensors: readonly TensorSpec[] }>({
  tensors: {
    check: list(
      struct<TensorSpec>({
        name: { check: text },
        shape: { check: shape },
        offset: { check: size },
        role: { check: word("parameter", "running-mean", "running-var", "counter", "other"), otherwise: "parameter" },
      }),
    ),
  },
});

/** The number of elements of a shape. */
export function elements(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1);
}

/** The SHA-256 of bytes, in hexadecimal. */
export async function sha256(bytes: Bytes): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Verify a program's files; raises `ProgramError` where one is not what the manifest says or holds what no program may.
 *
 * With `expected`, the program's name, the manifest itself is verified too.
 */
export async function load(files: ReadonlyMap<string, Bytes>, expected?: string): Promise<Program> {
  const id = await sha256(fileOf(files, MANIFEST));
  if (expected !== undefined && id !== expected) {
    throw new ProgramError(
      `${MANIFEST} is not the program ${expected.slice(0, 12)}…: its SHA-256 is ${id.slice(0, 12)}…`,
    );
  }
  const manifest = decoded(files, MANIFEST, manifestOf);
  for (const [name, file] of Object.entries(manifest.files)) {
    const data = fileOf(files, name);
    if (data.length !== file.bytes) {
      throw new ProgramError(`${name} has ${data.length} bytes, but the manifest says ${file.bytes}`);
    }
    if ((await sha256(data)) !== file.sha256) {
      throw new ProgramError(`${name} is damaged: its SHA-256 is not the manifest's`);
    }
  }
  const layout = decoded(files, "layout.json", layoutOf).tensors;
  const sizes = measure(layout);
  checkMemory(manifest, sizes.size);
  const [train, evaluate] = [fileOf(files, "train.onnx"), fileOf(files, "evaluate.onnx")];
  const graphs = [contents(train), contents(evaluate)] as const;
  const used = [...new Set(graphs.flatMap(({ operators }) => [...operators]))].sort();
  const foreign = used.filter((operator) => !OPERATORS.has(operator));
  if (foreign.length) throw new ProgramError(`no program may use the operators ${foreign.join(", ").slice(0, 200)}`);
  if (used.join() !== manifest.operators.join()) {
    throw new ProgramError("the graphs' operators are not those that the manifest lists");
  }
  checkNames(manifest, layout, ...graphs);
  return { id, manifest, layout, ...sizes, train, evaluate };
}

/** Raise `ProgramError` where a task is not what a program does. */
export function fits({ manifest }: Program, task: Task): void {
  const unused = manifest.recipe.optimizer === "adamw" ? ["momentum", "nesterov"] : ["betas", "epsilon"];
  for (const [name, baked] of Object.entries(manifest.recipe)) {
    const wanted = task.recipe[name as keyof BakedRecipe];
    if (String(wanted) !== String(baked) && !unused.includes(name)) {
      throw new ProgramError(`the program was lowered for ${name} ${baked}, but the task wants ${wanted}`);
    }
  }
  if (task.batch !== manifest.batch) {
    throw new ProgramError(
      `the program was lowered for batches of ${manifest.batch}, but the task wants ${task.batch}`,
    );
  }
  if (task.recipe.precision !== "float32") {
    throw new ProgramError(`the program computes in float32, but the task wants ${task.recipe.precision}`);
  }
}

/** The layout's tensors lie one after the other, parameters first. */
function measure(layout: readonly TensorSpec[]): { size: number; trainable: number } {
  let [size, trainable] = [0, 0];
  for (const { name, shape, offset, role } of layout) {
    const parameter = role === "parameter";
    if (elements(shape) > MOST_ELEMENTS) {
      throw new ProgramError(`layout.json: the tensor '${name}' has the shape (${shape.join(", ")})`);
    }
    if (offset !== size || (parameter && trainable !== size)) {
      throw new ProgramError(`layout.json: the tensor '${name}' is not where it belongs`);
    }
    size += elements(shape);
    if (parameter) trainable = size;
  }
  if (new Set(layout.map(({ name }) => name)).size < layout.length) {
    throw new ProgramError("layout.json: two tensors have one name");
  }
  return { size, trainable };
}

/** What a worker keeps for a program has bounds: each size has its own, but not their product. */
function checkMemory({ batch, evaluation_batch, x, y, noise, state }: Manifest, size: number): void {
  const total = (list: readonly NamedShape[]) => list.reduce((sum, { shape }) => sum + elements(shape), 0);
  const numbers = 3 * size + total(noise) + 2 * total(state); // two vectors and the anchor
  const samples = [x, y].reduce((sum, { dtype, shape }) => sum + BYTES[dtype] * elements(shape), 0);
  if ((batch + evaluation_batch) * samples + 4 * numbers > MOST_MEMORY) {
    throw new ProgramError(`the program takes more than ${MOST_MEMORY.toLocaleString("en")} bytes of memory`);
  }
}

/** The graphs take and give what the kernel feeds and fetches. */
function checkNames(manifest: Manifest, layout: readonly TensorSpec[], train: Contents, evaluate: Contents): void {
  const named = (prefix: string, list: readonly { name: string }[]) => list.map(({ name }) => prefix + name);
  const parameters = layout.filter(({ role }) => role === "parameter");
  const buffers = layout.filter(({ role }) => role !== "parameter");
  const vector = [...named("p.", parameters), ...named("b.", buffers)];
  const carried = [...vector, ...named("s.", manifest.state)];
  const noise = manifest.noise.map(({ name }) => name);
  const order = ["x", "y", "rate", "rho", "step", ...noise, ...carried, ...named("a.", parameters)];
  const cases = [
    ["train.onnx", train, order],
    ["evaluate.onnx", evaluate, ["x", "y", "mask", ...vector]],
  ] as const;
  for (const [file, { inputs }, allowed] of cases) {
    const found = new Set(inputs);
    if (
      !same(
        inputs,
        allowed.filter((name) => found.has(name)),
      )
    ) {
      throw new ProgramError(`${file} takes inputs that no worker has, or in another order`);
    }
  }
  const missing = noise.filter((name) => !train.inputs.includes(name));
  if (missing.length) {
    throw new ProgramError(`train.onnx does not take the random numbers ${missing.join(", ").slice(0, 200)}`);
  }
  const results = ["loss", ...carried.map((name) => `new.${name}`)];
  if (!same(train.outputs, results) || !same(evaluate.outputs, ["loss", "correct"])) {
    throw new ProgramError("the graphs' outputs are not those of a program");
  }
}

function same(one: readonly string[], two: readonly string[]): boolean {
  return one.length === two.length && one.every((name, i) => name === two[i]);
}

function fileOf(files: ReadonlyMap<string, Bytes>, name: string): Bytes {
  const data = files.get(name);
  if (!data) throw new ProgramError(`${name}: No such file`);
  if (data.length > MOST_BYTES) throw new ProgramError(`${name} has more than ${MOST_BYTES} bytes`);
  return data;
}

function decoded<T>(files: ReadonlyMap<string, Bytes>, name: string, check: Check<T>): T {
  try {
    return check(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(fileOf(files, name))), "$");
  } catch (error) {
    if (!(error instanceof MessageError || error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new ProgramError(`${name}: ${error.message}`);
  }
}
