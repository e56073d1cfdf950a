"""What is wrong with a COCO-format data set: one file for each thing that is looked at."""
