/** ‖one - two‖ / ‖two‖; 0 where they are the same. */
export function distance(one: ArrayLike<number>, two: ArrayLike<number>): number {
  let [apart, whole] = [0, 0];
  for (let i = 0; i < two.length; i++) {
    if (one[i] !== two[i]) apart += (one[i]! - two[i]!) ** 2;
    if (Number.isFinite(two[i])) whole += two[i]! ** 2;
  }
  return apart === 0 ? 0 : Math.sqrt(apart / whole);
}
