// What the coordinator and its workers say to each other: the twin of trainpool/messages.py.

import { MessageError } from "./errors";

/** What a worker does with a task: local optimizer, learning rate and its schedule, batch size. */
export interface Recipe {
  readonly optimizer: "sgd" | "adamw";
  readonly learning_rate: number;
  readonly batch_size: number;
  readonly momentum: number;
  readonly nesterov: boolean;
  readonly weight_decay: number;
  readonly betas: readonly [number, number];
  readonly epsilon: number;
  readonly clip_norm: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly warmup: number;
  readonly precision: "float32" | "bfloat16";
}

/** A self-contained piece of training; see Python's `Task` for its fields. */
export interface Task {
  readonly id: number;
  readonly version: number;
  readonly shard: string;
  readonly recipe: Recipe;
  readonly seed: number;
  readonly offset: number;
  readonly steps: number;
  readonly batch: number;
  readonly progress: number;
  readonly pace: number;
  readonly partial: boolean;
  readonly anchored: boolean;
  readonly rho: number;
}

/** A worker's answer to a task. */
export interface Report {
  readonly task: number;
  readonly steps: number;
  readonly samples: number;
  readonly loss: number;
  readonly seconds: number;
}

/** A check of one value: it returns the value as it is used, or raises `MessageError` that names `path`. */
export type Check<T> = (value: unknown, path: string) => T;
type Field<T> = { check: Check<T>; otherwise?: T };
type Fields<T> = { [K in keyof T]-?: Field<T[K]> };

/** An object of exactly these fields; those with an `otherwise` may be absent. */
export function struct<T extends object>(fields: Fields<T>): Check<T> {
  return (value, path) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return wrong("an object", value, path);
    const given = value as Record<string, unknown>;
    for (const name of Object.keys(given)) {
      if (!Object.hasOwn(fields, name)) throw new MessageError(`Object contains unknown field \`${name}\`${at(path)}`);
    }
    const entries = Object.entries(fields) as [string, Field<unknown>][];
    const checked = entries.map(([name, { check, otherwise }]) => {
      if (Object.hasOwn(given, name)) return [name, check(given[name], `${path}.${name}`)];
      if (otherwise === undefined) throw new MessageError(`Object missing required field \`${name}\`${at(path)}`);
      return [name, otherwise];
    });
    return Object.fromEntries(checked) as T;
  };
}

/** A number in a range; JSON knows no NaN and no infinity, and what overflows to one is refused. */
export function real(range: { above?: number; from?: number; below?: number } = {}): Check<number> {
  const { above = -Infinity, from = -Infinity, below = Infinity } = range;
  return (value, path) => {
    if (typeof value !== "number" || !Number.isFinite(value)) return wrong("a number", value, path);
    if (value <= above) return wrong(`a number > ${above}`, value, path);
    if (value < from) return wrong(`a number >= ${from}`, value, path);
    if (value >= below) return wrong(`a number < ${below}`, value, path);
    return value;
  };
}

/** A whole number that float64 carries exactly. */
export function whole(from: number, to = Number.MAX_SAFE_INTEGER): Check<number> {
  return (value, path) => {
    if (!Number.isSafeInteger(value)) return wrong("a whole number below 2**53", value, path);
    if ((value as number) < from || (value as number) > to)
      return wrong(`a whole number from ${from} to ${to}`, value, path);
    return value as number;
  };
}

export const flag: Check<boolean> = (value, path) =>
  typeof value === "boolean" ? value : wrong("true or false", value, path);

export const text: Check<string> = (value, path) => (typeof value === "string" ? value : wrong("a text", value, path));

/** One of some words. */
export function word<T extends string>(...words: T[]): Check<T> {
  return (value, path) =>
    words.includes(value as T) ? (value as T) : wrong(`one of ${words.join(", ")}`, value, path);
}

/** A text of a certain form. */
export function matching(pattern: RegExp): Check<string> {
  return (value, path) =>
    pattern.test(text(value, path)) ? (value as string) : wrong(`a text like ${pattern.source}`, value, path);
}

/** A list of so many items that pass `check`. */
export function list<T>(check: Check<T>, from = 0, to = Infinity): Check<readonly T[]> {
  return (value, path) => {
    if (!Array.isArray(value)) return wrong("a list", value, path);
    if (value.length < from || value.length > to) return wrong(`a list of ${from} to ${to} items`, value, path);
    return value.map((item, i) => check(item, `${path}[${i}]`));
  };
}

const fraction = real({ from: 0, below: 1 });
const notNegative = real({ from: 0 });
const positive = real({ above: 0 });
const count = whole(0);

export const optimizer = word("sgd", "adamw");
export const betas = list(fraction, 2, 2) as Check<readonly [number, number]>;

const fields = struct<Recipe>({
  optimizer: { check: optimizer, otherwise: "sgd" },
  learning_rate: { check: positive, otherwise: 0.1 },
  batch_size: { check: count, otherwise: 32 },
  momentum: { check: fraction, otherwise: 0 },
  nesterov: { check: flag, otherwise: false },
  weight_decay: { check: notNegative, otherwise: 0 },
  betas: { check: betas, otherwise: [0.9, 0.999] },
  epsilon: { check: positive, otherwise: 1e-8 },
  clip_norm: { check: notNegative, otherwise: 0 },
  schedule: { check: word("constant", "linear", "cosine"), otherwise: "cosine" },
  warmup: { check: fraction, otherwise: 0 },
  precision: { check: word("float32", "bfloat16"), otherwise: "float32" },
});

const recipe: Check<Recipe> = (value, path) => {
  const found = fields(value, path);
  if (found.nesterov && found.momentum === 0) throw new MessageError(`nesterov needs a momentum above 0${at(path)}`);
  return found;
};

export const taskOf = struct<Task>({
  id: { check: count },
  version: { check: count },
  shard: { check: text },
  recipe: { check: recipe },
  seed: { check: count },
  offset: { check: count },
  steps: { check: whole(1) },
  batch: { check: whole(1) },
  progress: { check: notNegative, otherwise: 0 },
  pace: { check: notNegative, otherwise: 0 },
  partial: { check: flag, otherwise: false },
  anchored: { check: flag, otherwise: false },
  rho: { check: notNegative, otherwise: 0 },
});

export const reportOf = struct<Report>({
  task: { check: count },
  steps: { check: whole(1) },
  samples: { check: whole(1) },
  loss: { check: real() },
  seconds: { check: notNegative },
});

/** A shard's message: which of several shards with the same samples it is. */
export const shardOf = struct<{ copy: number }>({ copy: { check: count, otherwise: 0 } });

/** The learning rate when the part `progress` (0 to 1) of the run's samples has been trained. */
export function rate(recipe: Recipe, progress: number): number {
  if (progress < recipe.warmup) return (recipe.learning_rate * progress) / recipe.warmup;
  const rest = Math.min(1, (progress - recipe.warmup) / (1 - recipe.warmup));
  switch (recipe.schedule) {
    case "constant":
      return recipe.learning_rate;
    case "linear":
      return recipe.learning_rate * (1 - rest);
    case "cosine":
      return (recipe.learning_rate * (1 + Math.cos(Math.PI * rest))) / 2;
  }
}

function wrong(expected: string, value: unknown, path: string): never {
  const shown = JSON.stringify(value) ?? "nothing";
  throw new MessageError(
    `Expected ${expected}, got ${shown.length > 40 ? `${shown.slice(0, 40)}…` : shown}${at(path)}`,
  );
}

function at(path: string): string {
  return path === "$" ? "" : ` - at \`${path}\``;
}
