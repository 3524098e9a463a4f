// One training step of the same network, on the same page: trainpool's kernel, and TensorFlow.js on its `cpu` backend.

import "@tensorflow/tfjs-backend-cpu";
import "@tensorflow/tfjs-core/dist/register_all_gradients";
import "@tensorflow/tfjs-core/dist/public/chained_ops/register_all_chained_ops";
import * as tf from "@tensorflow/tfjs-core";
import { Kernel } from "../../web/src/kernel";
import { shardOf, taskOf } from "../../web/src/messages";
import { load } from "../../web/src/program";
import { wasm } from "../../web/src/runtime";
import { decode } from "../../web/src/safetensors";

async function bytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await (await fetch(`./${name}`)).arrayBuffer());
}

/** Milliseconds of each step after the first ones, on WebAssembly. */
async function trainpool(threads: number): Promise<number[]> {
  const names = ["program.json", "train.onnx", "evaluate.onnx", "layout.json"];
  const program = await load(new Map(await Promise.all(names.map(async (n) => [n, await bytes(n)] as const))));
  const { message: task, tensors } = decode(await bytes("task.safetensors"), taskOf);
  const shard = decode(await bytes("shard.safetensors"), shardOf).tensors;
  const vector = tensors.get("vector")!.values as Float32Array<ArrayBuffer>;
  const kernel = await Kernel.open(program, await wasm(threads));
  const times = [performance.now()];
  await kernel.run(task, vector, undefined, shard, () => times.push(performance.now()) > 0);
  await kernel.close();
  return times
    .slice(1)
    .map((time, i) => time - times[i]!)
    .slice(5);
}

/** Milliseconds of each step after the first, with TensorFlow.js; its images are [n, height, width, channels]. */
async function tensorflow(steps: number): Promise<number[]> {
  await tf.setBackend("cpu");
  const weight = (shape: number[]) => tf.variable(tf.randomNormal(shape, 0, 0.05, "float32", 1));
  const conv1 = weight([3, 3, 1, 32]) as tf.Variable<tf.Rank.R4>;
  const conv2 = weight([3, 3, 32, 64]) as tf.Variable<tf.Rank.R4>;
  const [hidden, output] = [weight([64 * 7 * 7, 128]), weight([128, 10])] as tf.Variable<tf.Rank.R2>[];
  const biases = [32, 64, 128, 10].map((n) => tf.variable(tf.zeros([n])));
  const x = tf.randomUniform([32, 28, 28, 1], 0, 1, "float32", 2) as tf.Tensor4D;
  const y = tf.oneHot(tf.range(0, 32, 1, "int32").mod(tf.scalar(10, "int32")), 10) as tf.Tensor2D;
  const variables = [conv1, conv2, hidden!, output!, ...biases];
  const loss = (): tf.Scalar => {
    let h = tf.relu(tf.maxPool(tf.conv2d(x, conv1, 1, "same").add(biases[0]!) as tf.Tensor4D, 2, 2, "valid"));
    h = tf.relu(tf.maxPool(tf.conv2d(h, conv2, 1, "same").add(biases[1]!) as tf.Tensor4D, 2, 2, "valid"));
    const flat = tf.relu(tf.matMul(h.reshape([32, 64 * 7 * 7]) as tf.Tensor2D, hidden!).add(biases[2]!)) as tf.Tensor2D;
    return tf.losses.softmaxCrossEntropy(y, tf.matMul(flat, output!).add(biases[3]!)) as tf.Scalar;
  };
  const optimizer = tf.train.sgd(0.1);
  const times: number[] = [];
  for (let step = 0; step <= steps; step++) {
    const begin = performance.now();
    const value = optimizer.minimize(loss, true, variables)!;
    if (!Number.isFinite((await value.data())[0]!)) throw new Error("TensorFlow.js' loss is not a number");
    value.dispose();
    times.push(performance.now() - begin);
  }
  return times.slice(1);
}

Object.assign(window, { benchmark: { trainpool, tensorflow } });
