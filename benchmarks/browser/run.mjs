// Builds the page, opens it in Chromium and prints step times as JSON. Arguments: TensorFlow.js' steps, rounds.

import { chromium } from "playwright-core";
import { build, preview } from "vite";

const [steps, rounds] = process.argv.slice(2).map(Number);
await build({ logLevel: "error" });
const server = await preview({ preview: { port: 0, host: "127.0.0.1" }, logLevel: "error" });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage();
  await page.goto(server.resolvedUrls.local[0]);
  await page.waitForFunction("window.benchmark");
  const times = { trainpool: [], tensorflow: [] };
  for (let round = 0; round < rounds; round++) {
    times.trainpool.push(...(await page.evaluate("benchmark.trainpool(1)")));
    times.tensorflow.push(...(await page.evaluate(`benchmark.tensorflow(${steps})`)));
  }
  console.log(JSON.stringify(times));
} finally {
  await browser.close();
  await server.close();
}
