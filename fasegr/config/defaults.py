"""The keys beyond detectron2's own, and their defaults. Names that Mask2Former has mean what they mean there."""

from __future__ import annotations

from fasegr.d2 import CfgNode as CN

__all__ = ["add_fasegr_config"]


def add_fasegr_config(cfg: CN) -> None:
    """Add every key beyond detectron2's own to `cfg`, in place, and set its keys to what FASeg's recipes share."""
    # fmt: off
    # detectron2's keys, whose own defaults are those of a box detector
    cfg.MODEL.META_ARCHITECTURE = "FASeg"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]
    cfg.MODEL.BACKBONE.NAME = "build_fasegr_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0               # of a ResNet, as in detectron2; FREEZE is for every backbone
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.SEM_SEG_HEAD.NAME = "FASegHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 256
    cfg.INPUT.FORMAT = "RGB"
    cfg.CUDNN_BENCHMARK = True                     # in training with crops of one size (programs only)
    cfg.FLOAT32_PRECISION = "high"                 # GPU: products in TF32, as convolutions are; "highest": neither
    cfg.SOLVER.BASE_LR = 0.0001
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_FACTOR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01

    # Mask2Former's keys, in its order
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0  # a crop in which one class fills more is drawn again; 1.0: never
    cfg.INPUT.SIZE_DIVISIBILITY = -1               # training samples are padded to a multiple of it; -1: no padding

    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1           # the backbone's share of the learning rate
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0

    cfg.MODEL.MASK_FORMER = former = CN()
    former.DEEP_SUPERVISION = True
    former.NO_OBJECT_WEIGHT = 0.1
    former.CLASS_WEIGHT = 2.0
    former.DICE_WEIGHT = 5.0
    former.MASK_WEIGHT = 5.0
    former.NHEADS = 8
    former.DROPOUT = 0.0                           # of the pixel decoder
    former.DIM_FEEDFORWARD = 2048
    former.ENC_LAYERS = 0
    former.DEC_LAYERS = 14                         # decoder layers plus one, for the prediction before the first
    former.PRE_NORM = False
    former.HIDDEN_DIM = 256
    former.NUM_OBJECT_QUERIES = 100
    former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    former.ENFORCE_INPUT_PROJ = False
    former.TEST = CN()
    former.TEST.SEMANTIC_ON = True
    former.TEST.INSTANCE_ON = False
    former.TEST.PANOPTIC_ON = False
    former.TEST.OBJECT_MASK_THRESHOLD = 0.8        # this and the next two: instances and panoptic segments
    former.TEST.OVERLAP_THRESHOLD = 0.8
    former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    former.TEST.SEMANTIC_OUTPUT = "scores"         # "labels": only the most likely class, with a fraction of the memory
    former.SIZE_DIVISIBILITY = 32                  # images are padded to a multiple of it

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 6

    cfg.MODEL.SWIN = swin = CN()                   # build_fasegr_swin_backbone; the defaults are Swin-T
    swin.PRETRAIN_IMG_SIZE = 224                   # only read with APE
    swin.PATCH_SIZE = 4
    swin.EMBED_DIM = 96
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    swin.MLP_RATIO = 4.0
    swin.QKV_BIAS = True
    swin.QK_SCALE = None                           # None: 1 / sqrt(channels per head)
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    swin.DROP_PATH_RATE = 0.3
    swin.APE = False                               # absolute position embedding
    swin.PATCH_NORM = True
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    swin.USE_CHECKPOINT = False                    # recompute blocks in the backward pass instead of storing them

    cfg.INPUT.IMAGE_SIZE = 1024                    # this and the next two: large-scale jittering of the coco_* mappers
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024

    former.TRAIN_NUM_POINTS = 112 * 112
    former.OVERSAMPLE_RATIO = 3.0
    former.IMPORTANCE_SAMPLE_RATIO = 0.75

    # FASeg
    cfg.MODEL.FASEG = faseg = CN()
    faseg.POSITIONAL_QUERY = "dfpq"
    faseg.KEY_POSITION = "conditional"
    faseg.FIRST_QUERY_REGION = "background"        # as released; the paper pools over the foreground
    faseg.MASK_THRESHOLD = 0.15                    # Mask2Former 0.5
    faseg.HIGH_RES = CN()
    faseg.HIGH_RES.ATTENTION = "hrca"
    faseg.HIGH_RES.LEVELS = [4]                    # strides it attends to; without it the decoder has no 1/4 level
    faseg.HIGH_RES.OMEGA = 32                      # one key in OMEGA is attended
    faseg.HIGH_RES.SELECTION = "window"            # as released; the paper selects pixels
    faseg.HIGH_RES.QUERY = "static"                # as released; the paper uses the dynamic query

    # Additions
    cfg.MODEL.WEIGHTS_PARTIAL = False              # train on from what fits of another model's weights

    former.CLASS_WEIGHTS = []                      # of each class in the classification loss, or "inverse_sqrt"; []: 1

    former.MASK_PILOT = CN()                       # MP-Former: queries with noised true masks beside the others,
    former.MASK_PILOT.ENABLED = False              # in training only
    former.MASK_PILOT.NUM_QUERIES = 100            # the objects of an image take turns
    former.MASK_PILOT.LABEL_NOISE = 0.2            # share of their classes that become random ones
    former.MASK_PILOT.MASK_NOISE = 0.2             # flipped cells, as a share of a mask's

    cfg.MODEL.RESNETS.RES4_DILATION = 1            # these three are from detectron2's DeepLab; released files set them
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"

    cfg.MODEL.TIMM = CN()                          # build_timm_backbone
    cfg.MODEL.TIMM.NAME = ""                       # as in timm.list_models(), e.g. "convnext_tiny.in12k_ft_in1k"
    cfg.MODEL.TIMM.PRETRAINED = False              # timm's weights; not downloaded if MODEL.WEIGHTS is set
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0

    cfg.MODEL.VIT = vit = CN()                     # build_timm_vit_backbone: a plain ViT with ViTDet's feature pyramid
    vit.NAME = ""                                  # as in timm.list_models(), e.g. "vit_small_patch16_dinov3.lvd1689m"
    vit.PRETRAINED = False                         # timm's weights; not downloaded if MODEL.WEIGHTS is set
    vit.DROP_PATH_RATE = 0.0
    vit.OUT_CHANNELS = 256                         # of each map
    vit.WINDOW_SIZE = 0                            # in tokens; all but four blocks attend within windows; 0: everywhere

    cfg.MODEL.BACKBONE.FREEZE = 0                  # stages that are not trained, the stem being the first, or "all", or
                                                   # "all but norms"
    cfg.DATASETS.FOLDER = CN()                     # a dataset of two folders, registered as NAME_SPLIT for each split
    cfg.DATASETS.FOLDER.NAME = ""                  # empty: no such dataset
    cfg.DATASETS.FOLDER.ROOT = ""                  # relative to $DETECTRON2_DATASETS, which defaults to "datasets"
    cfg.DATASETS.FOLDER.IMAGES = "images/{split}"
    cfg.DATASETS.FOLDER.LABELS = "annotations/{split}"
    cfg.DATASETS.FOLDER.SPLITS = ["train", "val"]
    cfg.DATASETS.FOLDER.CLASSES = ""               # file of class names, relative to the YAML file that sets it, or
                                                   # the names: [road, sky] or [[road, [128, 64, 128]], ...]
    cfg.DATASETS.FOLDER.IGNORE_LABEL = 255
    cfg.DATASETS.FOLDER.LABEL_SUFFIX = ""          # behind the image's name: "_mask" for rose.jpg and rose_mask.png
    cfg.DATASETS.FOLDER.LABEL_MAP = []             # pairs [value or [R, G, B], class or ignore]; "colours"; "from_one"
    cfg.DATASETS.FOLDER.SPLIT_LISTS = ""           # text files of image names, e.g. "{split}.txt"; below ROOT
    cfg.DATASETS.FOLDER.VAL_SHARE = 0.0            # of one folder, drawn for the second of two SPLITS; 0: none
    cfg.DATASETS.FOLDER.VAL_SEED = 0
    cfg.DATASETS.FOLDER.VAL_GROUP = "auto"         # images that stay together; "": none, else a regular expression
    cfg.DATASETS.FOLDERS = []                      # further ones: mappings of FOLDER's keys; others are FOLDER's

    cfg.DATASETS.COCO = CN()                       # a dataset in COCO format, registered as NAME_SPLIT for each split
    cfg.DATASETS.COCO.NAME = ""                    # empty: no such dataset
    cfg.DATASETS.COCO.ROOT = ""                    # as in FOLDER; the next four are relative to it
    cfg.DATASETS.COCO.IMAGES = "{split}"
    cfg.DATASETS.COCO.INSTANCES = "annotations/instances_{split}.json"
    cfg.DATASETS.COCO.PANOPTIC = ""                # e.g. "annotations/panoptic_{split}.json"; empty: instances only
    cfg.DATASETS.COCO.SEGMENTS = "panoptic_{split}"  # the PNG files that PANOPTIC refers to
    cfg.DATASETS.COCO.SPLITS = ["train", "val"]
    cfg.DATASETS.COCO.SEMANTIC = False             # a class for each pixel, painted from the objects
    cfg.DATASETS.COCO.BACKGROUND = ""              # name of class 0 then, for pixels of no object; empty: ignored
    cfg.DATASETS.COCO.CATEGORIES = ""              # JSON, relative to the YAML file, or its list of categories; empty:
                                                   # from the first annotations

    cfg.INPUT.MAX_PIXELS = 178956970               # larger images are refused; this is Pillow's own limit
    cfg.INPUT.BIT_DEPTH = 0                        # bits that 16-bit images use; 0: 16, or 12 or 8 if no value has more
    cfg.INPUT.USE_EXIF = True                      # turn photographs upright; False reads them as they are stored
    cfg.INPUT.CROP.RARE_CLASS_PROB = 0.0           # share of crops drawn around a pixel of a rare class
    cfg.INPUT.AUGMENTATIONS = []                   # of torchvision.transforms.v2, as [{RandomRotation: {degrees: 10}}]
    cfg.INPUT.FIXED_SIZE_TEST = []                 # height, width of all images in tests; []: by MIN_SIZE_TEST
    cfg.INPUT.SIZE_MULTIPLE_TEST = 1               # sides in tests are stretched to a multiple of it; 1: only padded
    cfg.INPUT.CACHE = ""                           # folder for decoded images and labels; empty: no cache

    cfg.DATALOADER.TIMEOUT = 600                   # seconds without a batch after which a run fails; 0: wait for ever

    cfg.SOLVER.REFERENCE_BATCH = 0                 # batch size the schedule is for (batch_scaling.py); 0: no scaling
    cfg.SOLVER.LAYER_DECAY = 1.0                   # factor of the learning rate from one layer to that before it
    cfg.SOLVER.ACCUMULATE = 1                      # split each batch of IMS_PER_BATCH in as many parts to save memory
    cfg.SOLVER.COMPRESS_GRADIENTS = False          # processes exchange gradients as bfloat16: half the bytes, 8 bits
    cfg.SOLVER.AMP.DTYPE = "float16"
    cfg.SOLVER.EMA = CN()                          # exponential moving average of the weights
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9998                  # for IMS_PER_BATCH; it follows SOLVER.REFERENCE_BATCH
    cfg.SOLVER.PATIENCE = 0                        # evaluations without a better score that end a training; 0: never
    cfg.SOLVER.GRADIENT_CHECKPOINTING = False      # backbone, pixel decoder: less memory, steps a third longer

    cfg.TEST.SAVE_LABELS = False                   # predictions as label PNGs in OUTPUT_DIR/inference
    cfg.TEST.SAVE_SUBMISSION = False               # in the format of the benchmark's server (ADE20K, Cityscapes)
    cfg.TEST.SAVE_JSON = False                     # as detectron2's sem_seg_predictions.json
    cfg.TEST.SAVE_PREDICTIONS = []                 # any of coco, cvat, labelme, png, confidence: prediction_writer.py
    cfg.TEST.BOUNDARY_IOU = True
    cfg.TEST.REPORT = False                        # a page on the evaluation in OUTPUT_DIR/inference/report
    cfg.TEST.AUG.FROM_ORIGINAL = False             # resize the original image, not the one already resized for testing
    cfg.TEST.SLIDING_WINDOW = CN()                 # for images that do not fit into memory
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.TEST.SLIDING_WINDOW.SIZE = [512, 512]      # height, width; best the size of the training crops
    cfg.TEST.SLIDING_WINDOW.OVERLAP = 0.5          # least share of a window that the next one covers again

    cfg.TRACKERS = []                              # that get what metrics.json gets: wandb, mlflow

    cfg.SPEED = CN()
    cfg.SPEED.TUNED_ALLOCATOR = True               # keep freed memory in the process (glibc, programs only)
    cfg.SPEED.THREADS = 0                          # torch's threads on the CPU (programs only); 0: torch's default
    cfg.SPEED.COMPILE = False                      # torch.compile backbone and head on their first call
    cfg.SPEED.DTYPE = "float32"                    # of the network in inference and evaluation; bfloat16, float16 (GPU)
    cfg.SPEED.GATHER_METRICS_PERIOD = 1            # several processes report their mean losses in every so many steps
    cfg.SPEED.DETERMINISTIC = False                # the same numbers in every run on a GPU, but slower (programs only)
    # fmt: on
