// The kernel's own functions on a page's `window`, for tests and benchmarks: they call them from outside.

import * as choice from "../../src/choose";
import { Kernel } from "../../src/kernel";
import { shardOf, taskOf } from "../../src/messages";
import { load } from "../../src/program";
import { wasm, webgpu } from "../../src/runtime";
import { decode, type Tensors } from "../../src/safetensors";

async function bytes(url: string): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** A program's folder. */
async function program(folder: string) {
  const names = ["program.json", "train.onnx", "evaluate.onnx", "layout.json"];
  return load(new Map(await Promise.all(names.map(async (name) => [name, await bytes(`${folder}/${name}`)] as const))));
}

/** A task's file and its shard's. */
async function trial(folder: string): Promise<choice.Trial> {
  const { message: task, tensors } = decode(await bytes(`${folder}/task.safetensors`), taskOf);
  const floats = (name: string) => tensors.get(name)?.values as Float32Array<ArrayBuffer>;
  const anchor = tensors.has("anchor") ? floats("anchor") : undefined;
  return { task, vector: floats("vector"), anchor, shard: await shard(`${folder}/shard.safetensors`) };
}

/** A shard's samples. */
async function shard(file: string): Promise<Tensors> {
  return decode(await bytes(file), shardOf).tensors;
}

const trainpool = { Kernel, choice, program, shard, trial, wasm, webgpu };
export type Trainpool = typeof trainpool;
Object.assign(window, { trainpool });
