"""emoportraits convert --generator 328_model.pth --head-pose head_pose_regressor.pth --out DIR"""

# Part of a model -> what its file is.
PARTS = {
  'generator': 'the generator, NNN_model.pth',
  'head_pose': 'the head pose network, head_pose_regressor.pth',
  'face_parsing': 'the face parser, 79999_iter.pth (BiSeNet)',
  'matting': 'the matting network, modnet_photographic_portrait_matting.ckpt',
  'super_resolution': 'stage 2, of the folder logs_s2',
}


def add_arguments(parser):
  for part, text in PARTS.items():
    parser.add_argument(
      f'--{part.replace("_", "-")}', metavar='FILE', required=part == 'generator', help=text
    )
  parser.add_argument('--out', metavar='DIR', required=True, help='the model folder to write')


def run(args):
  from emoportraits_jax import convert

  files = {part: getattr(args, part) for part in PARTS if getattr(args, part)}
  convert.convert(files, args.out)
  print(f'Wrote {args.out}; use it with --model {args.out}.')
